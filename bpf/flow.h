/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The flow hash, equal in both directions, and equal to src/packet/flow.rs to the bit. */
#ifndef XTEE_FLOW_H
#define XTEE_FLOW_H

static __always_inline __u32 mix(__u32 hash, __u32 value)
{
	hash ^= value;
	hash *= 0x9E3779B1;
	return hash ^ (hash >> 15);
}

static __always_inline __u32 endpoint(const __u32 *words, bool ipv6, __u16 port)
{
	__u32 hash = mix(0x811C9DC5, bpf_ntohl(words[0]));

	if (ipv6) {
		hash = mix(hash, bpf_ntohl(words[1]));
		hash = mix(hash, bpf_ntohl(words[2]));
		hash = mix(hash, bpf_ntohl(words[3]));
	}
	return mix(hash, port);
}

static __always_inline __u32 mac_endpoint(const __u16 *words)
{
	__u32 hash = mix(0x811C9DC5, (__u32)bpf_ntohs(words[0]) << 16 | bpf_ntohs(words[1]));

	return mix(mix(hash, bpf_ntohs(words[2])), 0);
}

static __always_inline __u32 flow_hash_with(const struct ethernet_header *ethernet, const struct packet_facts *facts,
					    bool ports)
{
	__u32 a, b, protocol, hash;

	if (facts->family) {
		a = endpoint(facts->source, facts->family == 6, ports ? facts->source_port : 0);
		b = endpoint(facts->destination, facts->family == 6, ports ? facts->destination_port : 0);
		protocol = facts->protocol;
	} else {
		a = mac_endpoint(ethernet->words + 3);
		b = mac_endpoint(ethernet->words);
		protocol = facts->ethertype;
	}
	/* The sum goes through a round of its own: sum ^ xor alone would keep only the carries. */
	hash = mix(mix(mix(0, a + b), a ^ b), protocol);
	hash ^= hash >> 13;
	hash *= 0x85EBCA6B;
	return hash ^ (hash >> 16);
}

/* Any fragment, first or later, hashes without ports: a datagram stays together. */
static __always_inline __u32 flow_hash(const struct ethernet_header *ethernet, const struct packet_facts *facts)
{
	return flow_hash_with(ethernet, facts, facts->ports == XTEE_PORTS_KNOWN && facts->fragment == XTEE_WHOLE);
}

/* The flow hash chooses the ring, the target and the source port by its bits: sampling has bits of its own. */
static __always_inline __u32 sample_hash(__u32 hash)
{
	hash ^= 0x9747B28C;
	hash ^= hash >> 16;
	hash *= 0x85EBCA6B;
	hash ^= hash >> 13;
	hash *= 0xC2B2AE35;
	return hash ^ (hash >> 16);
}

#endif
