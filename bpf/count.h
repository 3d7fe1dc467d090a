/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Counting, in packets on the wire. A CPU's counters have one writer at a time: both hooks run with bottom halves off.
 */
#ifndef XTEE_COUNT_H
#define XTEE_COUNT_H

static __always_inline struct xtee_counters *this_cpu_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

static __always_inline void count_rule(struct xtee_counters *counters, __u8 rule, __u32 packets)
{
	counters->rules[rule < XTEE_MAX_RULES ? rule : XTEE_MAX_RULES] += packets;
}

/* What a rule's own `sample` or `cutoff` left out. */
static __always_inline void count_left_out(struct xtee_counters *counters, __u8 rule, __u32 packets)
{
	counters->left_out[rule & (XTEE_MAX_RULES - 1)] += packets;
}

#endif
