// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The span's steering: matching frames go to the AF_XDP socket of their queue, everything else (ARP, SSH,
 * our own control traffic) to the kernel. What is redirected is gone for the host, so this is for
 * interfaces whose traffic is ours. Attached by src/bpf/steer.rs.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "abi.h"
#include "maps.h"
#include "control_maps.h"

/* The kernel has multi-buffer XDP (5.18): what is not in a packet's first buffer is had by a helper. */
const volatile __u8 multi_buffer = 1;

#define XTEE_CONTEXT struct xdp_md
#define XTEE_LOAD(ctx, offset, variable)                                                                 \
	({                                                                                               \
		void *at = (void *)(long)(ctx)->data + (offset);                                         \
		bool loaded = (offset) < 1024 && at + sizeof(variable) <= (void *)(long)(ctx)->data_end; \
		if (loaded)                                                                              \
			(variable) = *(typeof(variable) *)at;                                            \
		else if (multi_buffer)                                                                   \
			loaded = !bpf_xdp_load_bytes(ctx, offset, &(variable), sizeof(variable));        \
		loaded;                                                                                  \
	})

#include "parse.h"
#include "flow.h"
#include "match.h"
#include "sensitive.h"
#include "count.h"
#include "slice.h"

/* Bytes to make in front of the frame for the outer header, where AF_XDP transmits it; 0 elsewhere. */
const volatile __u32 room = 0;

/* Whether every frame gets a struct xtee_note in front: only where a rule has a snaplen. */
const volatile __u32 notes = 0;

/* Queue → socket. Control fills it last on start and empties it first on stop. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, XTEE_MAX_RINGS);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* Of all its buffers, where there may be more than one. */
static __always_inline __u32 frame_length(struct xdp_md *ctx)
{
	return multi_buffer ? bpf_xdp_get_buff_len(ctx) : (long)ctx->data_end - (long)ctx->data;
}

/* Says in front of the frame how much of it is wanted: AF_XDP hands metadata to user space with the frame. */
static __always_inline bool put_note(struct xdp_md *ctx, __u32 snaplen, __u32 length)
{
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct xtee_note)))
		return false;
	struct xtee_note *note = (void *)(long)ctx->data_meta;
	if ((void *)(note + 1) > (void *)(long)ctx->data)
		return false;
	note->snaplen = snaplen;
	note->wire_length = length;
	return true;
}

/*
 * The frame goes to its queue's socket, or to the kernel as it came. A global function, so that the verifier
 * proves it once and not behind every path through the match.
 */
__attribute__((noinline)) int hand_over(struct xdp_md *ctx, __u32 snaplen)
{
	struct xtee_counters *counters = this_cpu_counters();
	__u32 queue = ctx->rx_queue_index;

	if (!counters)
		return XDP_PASS;
	/* Asked before the room is made: a frame that falls back to the kernel must be unchanged. */
	if (!bpf_map_lookup_elem(&sockets, &queue)) {
		counters->dropped[XTEE_DROP_no_socket] += 1;
		return XDP_PASS;
	}
	__u32 length = notes ? frame_length(ctx) : 0;
	/* Before the room: making room moves the note along, while a note cannot be put under room that is made. */
	if (notes && !put_note(ctx, snaplen, length)) {
		counters->dropped[XTEE_DROP_headroom] += 1;
		return XDP_PASS;
	}
	if (room && bpf_xdp_adjust_head(ctx, -(int)room)) {
		if (notes)
			bpf_xdp_adjust_meta(ctx, sizeof(struct xtee_note));
		counters->dropped[XTEE_DROP_headroom] += 1;
		return XDP_PASS;
	}
	/* The frame is ours, so it is cut itself: less to copy. Where that fails, the worker cuts all of it. */
	if (notes && snaplen && length > needed_bytes(snaplen))
		bpf_xdp_adjust_tail(ctx, -(int)(length - needed_bytes(snaplen)));
	/* A full socket is counted by the socket (XDP_STATISTICS), where the control plane reads it. */
	return bpf_redirect_map(&sockets, queue, XDP_DROP);
}

/* With fragments: a packet may be larger than a page. */
SEC("xdp.frags")
int xtee_steer(struct xdp_md *ctx)
{
	struct ethernet_header ethernet;
	struct packet_facts facts = {};
	struct verdict verdict = {};
	__u32 zero = 0;
	struct xtee_counters *counters = this_cpu_counters();

	if (!counters)
		return XDP_PASS;
	__u32 slot = *(volatile __u32 *)&control.generation & 1;
	void *slot_map = bpf_map_lookup_elem(&policies, &slot);
	if (!slot_map)
		return XDP_PASS;
	const struct xtee_policy *policy = bpf_map_lookup_elem(slot_map, &zero);
	if (!policy || !parse(ctx, &ethernet, &facts))
		return XDP_PASS;

	counters->seen += 1;
	match(policy, slot, &facts, 0, XTEE_IN, &verdict);
	count_rule(counters, verdict.rule, 1);
	if (!verdict.mirror) {
		counters->unmatched += 1;
		return XDP_PASS;
	}
	counters->matched += 1;
	if (verdict.unknown_ports)
		counters->unknown_fragments += 1;
	if (!policy->allow_credential_endpoints && is_sensitive(&facts)) {
		counters->dropped[XTEE_DROP_sensitive] += 1;
		return XDP_PASS;
	}
	__u32 snaplen = 0;
	const struct xtee_slice *slice = slice_of(policy, verdict.rule);
	if (slice) {
		__u32 reason = left_out(ctx, &ethernet, &facts, slice, frame_length(ctx));

		if (reason < XTEE_DROP_COUNT) {
			counters->dropped[reason] += 1;
			count_left_out(counters, verdict.rule, 1);
			/* Taken as the flow's other packets would be: the kernel has no use for them. */
			return XDP_DROP;
		}
		snaplen = slice->snaplen;
	}
	return hand_over(ctx, snaplen);
}

char _license[] SEC("license") = "Dual MIT/GPL";
