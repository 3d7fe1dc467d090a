/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Maps and variables that the control plane writes and the programs only read.
 *
 * A rule set is swapped whole: control fills the slot that is not in force, then writes
 * control.generation, whose low bit names the slot. A packet reads the generation once.
 */
#ifndef XTEE_CONTROL_MAPS_H
#define XTEE_CONTROL_MAPS_H

struct policy_slot {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xtee_policy);
} policy_even SEC(".maps"), policy_odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct policy_slot);
} policies SEC(".maps") = {.values = {&policy_even, &policy_odd}};

struct networks4_slot {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct xtee_network4_key);
	__type(value, struct xtee_bits);
} networks4_even SEC(".maps"), networks4_odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct networks4_slot);
} networks4 SEC(".maps") = {.values = {&networks4_even, &networks4_odd}};

struct networks6_slot {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct xtee_network6_key);
	__type(value, struct xtee_bits);
} networks6_even SEC(".maps"), networks6_odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct networks6_slot);
} networks6 SEC(".maps") = {.values = {&networks6_even, &networks6_odd}};

struct xtee_control control = {};

#endif
