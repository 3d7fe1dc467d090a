/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Whether a frame is one of our own copies on its way out: exactly our outer flow; other traffic to the collector
 * stays visible. For programs that know XTEE_LOAD (see parse.h), after maps.h, control_maps.h and match.h.
 */
#ifndef XTEE_OWN_H
#define XTEE_OWN_H

static __always_inline bool is_own_destination(const struct packet_facts *facts, const struct xtee_own_flow *own)
{
	return facts->destination[0] == own->destination[0] && facts->family == own->family &&
	       facts->protocol == own->protocol && facts->destination[1] == own->destination[1] &&
	       facts->destination[2] == own->destination[2] && facts->destination[3] == own->destination[3];
}

static __always_inline bool is_own_header(XTEE_CONTEXT *ctx, const struct packet_facts *facts,
					  const struct xtee_own_flow *own)
{
	__u32 word;

	if (own->destination_port &&
	    (facts->ports != XTEE_PORTS_KNOWN || facts->destination_port != own->destination_port ||
	     facts->source_port < own->source_port_first || facts->source_port > own->source_port_last))
		return false;
	if (!XTEE_LOAD(ctx, facts->transport + own->header_offset, word) || (word & own->header_mask) != own->header)
		return false;
	if (!own->identifier_mask)
		return true;
	return XTEE_LOAD(ctx, facts->transport + own->identifier_offset, word) &&
	       (word & own->identifier_mask) == own->identifier;
}

/* Later fragments of ours: the first one passed here before them, for the kernel sends them in order. */
static __always_inline bool is_own_later_fragment(const struct packet_facts *facts)
{
	struct xtee_fragment_key key;

	fragment_key(facts, &key);
	__u64 *seen = bpf_map_lookup_elem(&own_fragments, &key);
	return seen && bpf_ktime_get_ns() - *seen < XTEE_FRAGMENT_LIFETIME;
}

static __always_inline void remember_own_fragment(const struct packet_facts *facts)
{
	struct xtee_fragment_key key;
	__u64 now = bpf_ktime_get_ns();

	fragment_key(facts, &key);
	bpf_map_update_elem(&own_fragments, &key, &now, BPF_ANY);
}

static __always_inline bool is_own_copy(XTEE_CONTEXT *ctx, const struct packet_facts *facts)
{
	__u32 count = control.own_flow_count;

	if ((facts->protocol != 17 && facts->protocol != 47) || !count)
		return false;
	for (__u32 i = 0; i < XTEE_MAX_OWN_FLOWS; i++) {
		if (i >= count)
			break;
		const struct xtee_own_flow *own = &control.own_flows[i];

		if (!is_own_destination(facts, own))
			continue;
		if (facts->fragment == XTEE_LATER_FRAGMENT)
			return is_own_later_fragment(facts);
		if (!is_own_header(ctx, facts, own))
			continue;
		if (facts->fragment == XTEE_FIRST_FRAGMENT)
			remember_own_fragment(facts);
		return true;
	}
	return false;
}

#endif
