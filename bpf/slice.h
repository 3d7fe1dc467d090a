/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * How much of what a rule takes is copied: whole flows (`sample`), the beginning of a flow (`cutoff`).
 * The third, `snaplen`, is a length: each program gives the worker so much, or what the loop guard needs.
 *
 * A packet whose rule has none of these pays for one test.
 */
#ifndef XTEE_SLICE_H
#define XTEE_SLICE_H

/* A stream that rested so long begins anew: without it, two hosts' pings would end after `cutoff` bytes for good. */
#define XTEE_STREAM_LIFETIME (120 * XTEE_SECOND)
#define XTEE_TCP_SYN 0x02

static __always_inline const struct xtee_slice *slice_of(const struct xtee_policy *policy, __u8 rule)
{
	if (!policy->sliced || rule >= XTEE_MAX_RULES || !(policy->sliced >> rule & 1))
		return 0;
	return &policy->slices[rule & (XTEE_MAX_RULES - 1)];
}

/*
 * Whether the packet's flow is among those that are left out. A fragment whose ports are known, first or
 * later, goes the way of its flow; one whose first was not seen is no flow's, and kept.
 */
static __always_inline bool is_sampled_out(const struct ethernet_header *ethernet, const struct packet_facts *facts,
					   __u32 limit)
{
	if (facts->ports == XTEE_PORTS_UNKNOWN)
		return false;
	return sample_hash(flow_hash_with(ethernet, facts, facts->ports == XTEE_PORTS_KNOWN)) > limit;
}

/*
 * Counts the frame and tells whether its stream had its bytes before: the frame that crosses the limit is
 * copied. A SYN begins a connection on the same ports, so it starts from nothing. What is not IP has no stream.
 */
static __always_inline bool is_cut_off(XTEE_CONTEXT *ctx, const struct packet_facts *facts, __u64 cutoff, __u32 length)
{
	struct xtee_stream_key key = {};
	__u8 flags = 0;

	if (!facts->family)
		return false;
	__builtin_memcpy(key.source, facts->source, sizeof(key.source));
	__builtin_memcpy(key.destination, facts->destination, sizeof(key.destination));
	if (facts->ports == XTEE_PORTS_KNOWN) {
		key.source_port = facts->source_port;
		key.destination_port = facts->destination_port;
	}
	key.protocol = facts->protocol;
	/* :: and 0.0.0.0 are the same words. */
	key.family_and_direction = (__u16)facts->family << 8 | facts->direction;
	if (facts->protocol == 6 && facts->fragment != XTEE_LATER_FRAGMENT &&
	    !XTEE_LOAD(ctx, facts->transport + 13, flags))
		flags = 0;

	__u64 now = bpf_ktime_get_ns();
	struct xtee_stream *stream = bpf_map_lookup_elem(&streams, &key);
	if (!stream) {
		struct xtee_stream fresh = {.bytes = length, .seen = now};

		bpf_map_update_elem(&streams, &key, &fresh, BPF_ANY);
		return false;
	}
	__u64 rested = now - stream->seen;
	if ((flags & XTEE_TCP_SYN) || rested > XTEE_STREAM_LIFETIME) {
		stream->bytes = length;
		stream->seen = now;
		return false;
	}
	/* To a second, lest every packet of a flow on two CPUs write the same cache line twice. */
	if (rested > XTEE_SECOND)
		stream->seen = now;
	if (stream->bytes >= cutoff)
		return true;
	return __sync_fetch_and_add(&stream->bytes, length) >= cutoff;
}

/* Bytes that the worker needs of a frame for a snaplen. */
static __always_inline __u32 needed_bytes(__u32 snaplen)
{
	return snaplen > XTEE_SEARCHED_BYTES ? snaplen : XTEE_SEARCHED_BYTES;
}

/*
 * Why the packet is left out of what its rule copies; XTEE_DROP_COUNT where it is not. A global function, so
 * that the verifier proves it once and not behind every path through the match.
 */
__attribute__((noinline)) __u32 left_out(XTEE_CONTEXT *ctx, const struct ethernet_header *ethernet,
					 const struct packet_facts *facts, const struct xtee_slice *slice, __u32 length)
{
	if (!ethernet || !facts || !slice)
		return XTEE_DROP_COUNT;
	if (slice->sample_limit != 0xffffffff && is_sampled_out(ethernet, facts, slice->sample_limit))
		return XTEE_DROP_sampled;
	if (slice->cutoff && is_cut_off(ctx, facts, slice->cutoff, length))
		return XTEE_DROP_cutoff;
	return XTEE_DROP_COUNT;
}

#endif
