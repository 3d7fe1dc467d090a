/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * From bytes to the facts that rules ask for. Bounds-checked, writes nothing, knows no rule.
 *
 * The including program gives XTEE_LOAD(ctx, offset, variable): copies sizeof(variable) bytes at
 * offset into the variable, false beyond the packet's end. The one parser serves tc and XDP.
 */
#ifndef XTEE_PARSE_H
#define XTEE_PARSE_H

#define XTEE_ETH_HEADER 14
#define XTEE_MAX_VLAN_TAGS 2
#define XTEE_MAX_EXTENSION_HEADERS 8

enum { XTEE_PORTS_NONE = 0, XTEE_PORTS_KNOWN = 1, XTEE_PORTS_UNKNOWN = 2 };
enum { XTEE_WHOLE = 0, XTEE_FIRST_FRAGMENT = 1, XTEE_LATER_FRAGMENT = 2 };

struct packet_facts {
	__u32 source[4]; /* network order; IPv4 in the first word */
	__u32 destination[4];
	__u32 identification; /* of a fragment, network order */
	__u32 transport;      /* offset of the transport header, 0 where there is none */
	__u16 source_port;    /* host order */
	__u16 destination_port;
	__u16 protocol;  /* IP protocol after extension headers, or XTEE_NOT_IP */
	__u16 ethertype; /* host order, after VLAN tags */
	__u8 family;     /* 4, 6 or 0 */
	__u8 ports;
	__u8 fragment;
	__u8 direction; /* enum xtee_direction; the hook's to set */
};

struct ethernet_header {
	__u16 words[6];
	__u16 ethertype;
};

struct vlan_tag {
	__u16 tci;
	__u16 ethertype;
};

struct ipv4_header {
	__u8 version_and_length;
	__u8 tos;
	__u16 total_length;
	__u16 identification;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

struct ipv6_header {
	__u32 version_and_flow;
	__u16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	__u32 source[4];
	__u32 destination[4];
};

struct extension_header {
	__u8 next_header;
	__u8 length;
	__u16 fragment;
	__u32 identification;
};

struct port_pair {
	__u16 source;
	__u16 destination;
};

static __always_inline bool is_vlan(__u16 ethertype)
{
	return ethertype == 0x8100 || ethertype == 0x88a8 || ethertype == 0x9100;
}

static __always_inline bool has_ports(__u16 protocol)
{
	return protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136;
}

/* The ports at the transport header, once the IP header said whether this is a fragment. */
#define XTEE_PARSE_PORTS(ctx, facts)                                     \
	do {                                                             \
		if (!has_ports((facts)->protocol))                       \
			break;                                           \
		if ((facts)->fragment == XTEE_LATER_FRAGMENT) {          \
			(facts)->ports = XTEE_PORTS_UNKNOWN;             \
			break;                                           \
		}                                                        \
		struct port_pair pair;                                   \
		if (!XTEE_LOAD(ctx, (facts)->transport, pair))           \
			break;                                           \
		(facts)->source_port = bpf_ntohs(pair.source);           \
		(facts)->destination_port = bpf_ntohs(pair.destination); \
		(facts)->ports = XTEE_PORTS_KNOWN;                       \
	} while (0)

static __always_inline void parse_ipv4(XTEE_CONTEXT *ctx, __u32 offset, struct packet_facts *facts)
{
	struct ipv4_header ip;

	if (!XTEE_LOAD(ctx, offset, ip) || (ip.version_and_length >> 4) != 4)
		return;
	__u32 header = (ip.version_and_length & 0xf) * 4;
	if (header < sizeof(ip))
		return;
	facts->family = 4;
	facts->protocol = ip.protocol;
	facts->source[0] = ip.source;
	facts->destination[0] = ip.destination;
	facts->transport = offset + header;
	__u16 fragment = bpf_ntohs(ip.fragment);
	if (fragment & 0x3fff) { /* more fragments, or an offset */
		facts->fragment = fragment & 0x1fff ? XTEE_LATER_FRAGMENT : XTEE_FIRST_FRAGMENT;
		facts->identification = ip.identification;
	}
	XTEE_PARSE_PORTS(ctx, facts);
}

static __always_inline void parse_ipv6(XTEE_CONTEXT *ctx, __u32 offset, struct packet_facts *facts)
{
	struct ipv6_header ip;

	if (!XTEE_LOAD(ctx, offset, ip) || (ip.version_and_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return;
	facts->family = 6;
	__builtin_memcpy(facts->source, ip.source, sizeof(ip.source));
	__builtin_memcpy(facts->destination, ip.destination, sizeof(ip.destination));
	offset += sizeof(ip);
	__u8 next = ip.next_header;

	/* RFC 8200 section 4: walk to the upper layer; a later fragment has nothing behind its header. */
	for (int i = 0; i < XTEE_MAX_EXTENSION_HEADERS; i++) {
		struct extension_header extension;

		if (facts->fragment == XTEE_LATER_FRAGMENT)
			break;
		if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60 && next != 135 && next != 139 &&
		    next != 140)
			break;
		if (!XTEE_LOAD(ctx, offset, extension))
			break;
		if (next == 44) {
			__u16 fragment = bpf_ntohs(extension.fragment);
			if (fragment & 0xfff9) { /* an atomic fragment (RFC 6946) is whole */
				facts->fragment = fragment & 0xfff8 ? XTEE_LATER_FRAGMENT : XTEE_FIRST_FRAGMENT;
				facts->identification = extension.identification;
			}
			offset += 8;
		} else if (next == 51) { /* AH counts in 4 bytes, less 2 (RFC 4302 section 2.2) */
			offset += (extension.length + 2) * 4;
		} else {
			offset += (extension.length + 1) * 8;
		}
		next = extension.next_header;
	}
	facts->protocol = next;
	facts->transport = offset;
	XTEE_PARSE_PORTS(ctx, facts);
}

/*
 * Fills facts; false where there is no whole Ethernet header. What cannot be parsed further keeps
 * protocol XTEE_NOT_IP and is matched as such.
 *
 * A global function, so that the verifier proves it once and by itself: inlined, its paths multiply
 * with those of the match (569,000 verified instructions instead of a few thousand).
 */
__attribute__((noinline)) bool parse(XTEE_CONTEXT *ctx, struct ethernet_header *ethernet, struct packet_facts *facts)
{
	__u32 offset = XTEE_ETH_HEADER;

	if (!ethernet || !facts || !XTEE_LOAD(ctx, 0, *ethernet))
		return false;
	__u16 ethertype = bpf_ntohs(ethernet->ethertype);
	for (int i = 0; i < XTEE_MAX_VLAN_TAGS; i++) {
		struct vlan_tag tag;

		if (!is_vlan(ethertype) || !XTEE_LOAD(ctx, offset, tag))
			break;
		ethertype = bpf_ntohs(tag.ethertype);
		offset += sizeof(tag);
	}
	facts->ethertype = ethertype;
	facts->protocol = XTEE_NOT_IP;
	if (ethertype == 0x0800)
		parse_ipv4(ctx, offset, facts);
	else if (ethertype == 0x86dd)
		parse_ipv6(ctx, offset, facts);
	return true;
}

#endif
