/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Maps that the programs write: counters, fragments, learned marks. Those that control writes: control_maps.h. */
#ifndef XTEE_MAPS_H
#define XTEE_MAPS_H

/* One value a CPU: a packet increments without an atomic operation. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xtee_counters);
} counters SEC(".maps");

/*
 * Ports of datagrams whose first fragment was seen, so that the later ones get the same verdict.
 * LRU: bounded, a flood of first fragments evicts and never grows.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct xtee_fragment_key);
	__type(value, struct xtee_fragment);
} fragments SEC(".maps");

/*
 * Datagrams of our own outer flow whose first fragment was seen: the later ones have no tunnel header. Apart
 * from the others, so that a flood of somebody's fragments cannot push ours out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct xtee_fragment_key);
	__type(value, __u64); /* ns, CLOCK_MONOTONIC */
} own_fragments SEC(".maps");

/* Marks seen at egress, by flow, so that the flow's ingress packets follow. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct xtee_flow_key);
	__type(value, struct xtee_learned);
} learned_marks SEC(".maps");

/* What `cutoff` has counted; user space makes it this large only where a rule has one. LRU: bounded. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct xtee_stream_key);
	__type(value, struct xtee_stream);
} streams SEC(".maps");

#endif
