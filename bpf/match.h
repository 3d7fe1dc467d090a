/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Which rule takes a packet. One table look-up a field gives the set of rules that the field allows;
 * their intersection's lowest bit is the first match, so that 64 rules cost what one costs.
 * The pure model of this file is src/mirror/tables.rs, and a test holds the two together.
 */
#ifndef XTEE_MATCH_H
#define XTEE_MATCH_H

#define XTEE_SECOND 1000000000ull
/* RFC 8200 section 4.5 gives reassembly 60 s, Linux 30 s; later than that an ID belongs to another datagram. */
#define XTEE_FRAGMENT_LIFETIME (30 * XTEE_SECOND)
/* An idle flow's mark is forgotten, lest another connection on the same ports inherit it. */
#define XTEE_MARK_LIFETIME (300 * XTEE_SECOND)

struct verdict {
	bool mirror;
	bool unknown_ports; /* where it mirrors: perhaps nobody asked for this packet */
	__u8 rule;
};

static __always_inline void fragment_key(const struct packet_facts *facts, struct xtee_fragment_key *key)
{
	__builtin_memcpy(key->source, facts->source, sizeof(key->source));
	__builtin_memcpy(key->destination, facts->destination, sizeof(key->destination));
	key->identification = facts->identification;
	/* IPv6 later fragments name the protocol of the first's first header only; the ID suffices there. */
	key->protocol = facts->family == 4 ? facts->protocol : 0x100;
}

/*
 * First fragments teach their ports and their upper-layer protocol (an IPv6 later fragment names only the
 * first header behind the fragment header), later ones learn them.
 */
static __always_inline void follow_fragments(struct packet_facts *facts)
{
	struct xtee_fragment_key key;

	fragment_key(facts, &key);
	if (facts->fragment == XTEE_FIRST_FRAGMENT) {
		struct xtee_fragment fragment = {
			.seen = bpf_ktime_get_ns(),
			.source_port = facts->source_port,
			.destination_port = facts->destination_port,
			.protocol = facts->protocol,
			.ports = facts->ports,
		};
		bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
	} else {
		struct xtee_fragment *known = bpf_map_lookup_elem(&fragments, &key);

		if (known && bpf_ktime_get_ns() - known->seen < XTEE_FRAGMENT_LIFETIME) {
			facts->source_port = known->source_port;
			facts->destination_port = known->destination_port;
			facts->protocol = known->protocol;
			facts->ports = known->ports;
		}
	}
}

static __always_inline __u64 mark_bits(const struct xtee_policy *policy, __u32 mark)
{
	return policy->mark[0][mark & 0xff] & policy->mark[1][mark >> 8 & 0xff] & policy->mark[2][mark >> 16 & 0xff] &
	       policy->mark[3][mark >> 24];
}

static __always_inline bool source_is_low(const struct packet_facts *facts)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		if (facts->source[i] != facts->destination[i])
			return facts->source[i] < facts->destination[i];
	}
	return facts->source_port <= facts->destination_port;
}

static __always_inline void flow_key(const struct packet_facts *facts, struct xtee_flow_key *key)
{
	if (source_is_low(facts)) {
		__builtin_memcpy(key->low, facts->source, sizeof(key->low));
		__builtin_memcpy(key->high, facts->destination, sizeof(key->high));
		key->low_port = facts->source_port;
		key->high_port = facts->destination_port;
	} else {
		__builtin_memcpy(key->low, facts->destination, sizeof(key->low));
		__builtin_memcpy(key->high, facts->source, sizeof(key->high));
		key->low_port = facts->destination_port;
		key->high_port = facts->source_port;
	}
	/* :: and 0.0.0.0 are the same words. */
	key->protocol = (__u32)facts->family << 16 | facts->protocol;
}

/*
 * tc ingress runs before netfilter, so a mark shows at egress only: the flow is learned there, and its
 * ingress packets take the mark from the next packet on.
 */
static __always_inline __u32 effective_mark(const struct xtee_policy *policy, const struct packet_facts *facts,
					    __u32 mark, __u32 direction)
{
	struct xtee_flow_key key;

	if (!facts->family)
		return mark;
	if (direction == XTEE_OUT) {
		if (!mark || !(mark_bits(policy, mark) & policy->needs_mark))
			return mark;
		flow_key(facts, &key);
		__u64 now = bpf_ktime_get_ns();
		struct xtee_learned *known = bpf_map_lookup_elem(&learned_marks, &key);
		if (known && known->mark == mark) {
			if (now - known->seen > XTEE_SECOND)
				known->seen = now;
			return mark;
		}
		struct xtee_learned learned = {.seen = now, .mark = mark};
		bpf_map_update_elem(&learned_marks, &key, &learned, BPF_ANY);
		return mark;
	}
	if (mark)
		return mark;
	flow_key(facts, &key);
	struct xtee_learned *known = bpf_map_lookup_elem(&learned_marks, &key);
	if (known && bpf_ktime_get_ns() - known->seen < XTEE_MARK_LIFETIME)
		return known->mark;
	return 0;
}

static __always_inline __u64 network_bits(const struct xtee_policy *policy, __u32 slot,
					  const struct packet_facts *facts)
{
	const struct xtee_bits *source = &policy->no_network, *destination = &policy->no_network;

	if (facts->family == 4) {
		void *trie = bpf_map_lookup_elem(&networks4, &slot);

		if (trie) {
			struct xtee_network4_key key = {.prefix_length = 32, .address = facts->source[0]};
			const struct xtee_bits *found = bpf_map_lookup_elem(trie, &key);

			if (found)
				source = found;
			key.address = facts->destination[0];
			found = bpf_map_lookup_elem(trie, &key);
			if (found)
				destination = found;
		}
	} else if (facts->family == 6) {
		void *trie = bpf_map_lookup_elem(&networks6, &slot);

		if (trie) {
			struct xtee_network6_key key = {.prefix_length = 128};
			const struct xtee_bits *found;

			__builtin_memcpy(key.address, facts->source, sizeof(key.address));
			found = bpf_map_lookup_elem(trie, &key);
			if (found)
				source = found;
			__builtin_memcpy(key.address, facts->destination, sizeof(key.address));
			found = bpf_map_lookup_elem(trie, &key);
			if (found)
				destination = found;
		}
	}
	return source->source & destination->destination & (source->either | destination->either);
}

static __always_inline const struct xtee_bits *port_bits(const struct xtee_policy *policy, __u32 port)
{
	/* The table holds class numbers below the limit; the mask is for the verifier. */
	return &policy->port_classes[policy->port_class_of[port] & (XTEE_MAX_PORT_CLASSES - 1)];
}

static __always_inline __u8 lowest_bit(__u64 word)
{
	/* BPF has no count-trailing-zeros: six halvings. */
	__u8 bit = 0;

	if (!(word & 0xffffffff)) {
		bit += 32;
		word >>= 32;
	}
	if (!(word & 0xffff)) {
		bit += 16;
		word >>= 16;
	}
	if (!(word & 0xff)) {
		bit += 8;
		word >>= 8;
	}
	if (!(word & 0xf)) {
		bit += 4;
		word >>= 4;
	}
	if (!(word & 0x3)) {
		bit += 2;
		word >>= 2;
	}
	if (!(word & 0x1))
		bit += 1;
	return bit & 63;
}

static __always_inline void decide(const struct xtee_policy *policy, __u64 candidates, struct verdict *verdict)
{
	if (candidates) {
		verdict->rule = lowest_bit(candidates);
		verdict->mirror = policy->mirror >> verdict->rule & 1;
	} else {
		verdict->rule = XTEE_DEFAULT_RULE;
		verdict->mirror = policy->default_mirror;
	}
}

static __always_inline void match(const struct xtee_policy *policy, __u32 slot, struct packet_facts *facts, __u32 mark,
				  __u32 direction, struct verdict *verdict)
{
	if (facts->fragment != XTEE_WHOLE)
		follow_fragments(facts);
	__u32 protocol = facts->protocol;
	/* Keeps the compiler from testing one register and indexing with another, which the verifier refuses. */
	asm volatile("" : "+r"(protocol));
	if (protocol > XTEE_NOT_IP)
		protocol = XTEE_NOT_IP;
	__u64 candidates = policy->all & policy->direction[direction & 1] & policy->protocol[protocol];
	if (policy->needs_mark)
		candidates &= mark_bits(policy, effective_mark(policy, facts, mark, direction));
	if (policy->needs_networks)
		candidates &= network_bits(policy, slot, facts);
	if (policy->needs_ports && facts->ports != XTEE_PORTS_UNKNOWN) {
		bool known = facts->ports == XTEE_PORTS_KNOWN;
		const struct xtee_bits *source = port_bits(policy, known ? facts->source_port : XTEE_NO_PORT);
		const struct xtee_bits *destination = port_bits(policy, known ? facts->destination_port : XTEE_NO_PORT);

		candidates &= source->source & destination->destination & (source->either | destination->either);
	}
	if (policy->needs_ports && facts->ports == XTEE_PORTS_UNKNOWN && (candidates & policy->needs_ports)) {
		/*
		 * A later fragment that came before its first: a rule with ports might take it or might
		 * not. It is copied unless a rule without ports decides before any such mirror rule.
		 */
		__u64 certain = candidates & ~policy->needs_ports;
		__u64 first_certain = certain & -certain;
		__u64 possible = certain ? candidates & (first_certain | (first_certain - 1)) : candidates;

		verdict->unknown_ports = (possible & policy->needs_ports) != 0;
		candidates = possible & policy->mirror ? possible & policy->mirror : certain;
	}
	decide(policy, candidates, verdict);
}

#endif
