/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What a device's packets begin with: an Ethernet header, or the IP packet itself (tun, WireGuard, PPP,
 * IP tunnels). Copies of the latter get a synthetic Ethernet header in the ring, so that workers,
 * encapsulations and sensors know one kind of frame.
 *
 * Needs parse.h and offload.h. Decides nothing about a packet.
 */
#ifndef XTEE_LINK_H
#define XTEE_LINK_H

/*
 * Destination and source of the synthetic header, by direction, as 16-bit words in network order. Control
 * makes them from the source's name.
 */
const volatile __u16 synthetic_macs[2][6] = {};

/*
 * Where the IP packet begins. A device without hard header mostly has it at skb->data, but a packet that
 * a GRE device received still has its outer headers there: the kernel knows the difference (6.2 and newer).
 */
static __always_inline __u32 network_offset(struct __sk_buff *skb)
{
	if (!bpf_ksym_exists(bpf_cast_to_kern_ctx))
		return 0;
	struct sk_buff___xtee *kernel = bpf_cast_to_kern_ctx(skb);
	__u64 headroom = kernel->data - kernel->head;
	/* The verifier takes the difference of two pointers, and no other order of these three. */
	asm volatile("" : "+r"(headroom));
	__u32 offset = kernel->network_header - (__u32)headroom;

	return offset < skb->len ? offset : 0;
}

/* As parse(), for a packet that begins at offset with its IP header; a global function for the same reason. */
__attribute__((noinline)) bool parse_ip(XTEE_CONTEXT *ctx, __u32 offset, struct packet_facts *facts)
{
	__u8 version;

	if (!facts || !XTEE_LOAD(ctx, offset, version))
		return false;
	facts->protocol = XTEE_NOT_IP;
	if (version >> 4 == 4) {
		facts->ethertype = 0x0800;
		parse_ipv4(ctx, offset, facts);
	} else if (version >> 4 == 6) {
		facts->ethertype = 0x86dd;
		parse_ipv6(ctx, offset, facts);
	} else {
		facts->ethertype = bpf_ntohs(ctx->protocol);
	}
	return true;
}

/* Fills ethernet, offset and facts; false where there is no frame that anyone could be given. */
static __always_inline bool parse_link(struct __sk_buff *skb, const __u32 direction, const __u8 link,
				       struct ethernet_header *ethernet, __u32 *offset, struct packet_facts *facts)
{
	if (link == XTEE_LINK_ETHERNET)
		return parse(skb, ethernet, facts);
	*offset = network_offset(skb);
	if (!parse_ip(skb, *offset, facts))
		return false;
	for (int word = 0; word < 6; word++)
		ethernet->words[word] = synthetic_macs[direction & 1][word];
	ethernet->ethertype = bpf_htons(facts->ethertype);
	return true;
}

#endif
