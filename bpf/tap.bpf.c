// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The tap: on tc ingress and egress of a live interface, match and copy once into a ring.
 *
 * Never changes, delays or drops the original: every path returns TC_ACT_UNSPEC (= TCX_NEXT), the
 * answer "no opinion" with which the next program on the hook decides. Attached by src/bpf/tap.rs.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#include "abi.h"
#include "maps.h"
#include "control_maps.h"

#define XTEE_CONTEXT struct __sk_buff
/* Headers are nearly always linear: direct access; the helper is for those that are not. */
#define XTEE_LOAD(ctx, offset, variable)                                                                 \
	({                                                                                               \
		void *at = (void *)(long)(ctx)->data + (offset);                                         \
		bool loaded = (offset) < 1024 && at + sizeof(variable) <= (void *)(long)(ctx)->data_end; \
		if (loaded)                                                                              \
			(variable) = *(typeof(variable) *)at;                                            \
		else                                                                                     \
			loaded = !bpf_skb_load_bytes(ctx, offset, &(variable), sizeof(variable));        \
		loaded;                                                                                  \
	})

#include "parse.h"
#include "flow.h"
#include "match.h"
#include "sensitive.h"
#include "count.h"
#include "slice.h"
#include "offload.h"
#include "link.h"
#include "copy.h"
#include "own.h"

const volatile __u32 ring_count = 1;
/* So that the skeleton carries the record's type. */
const volatile struct xtee_record record_type = {};

/*
 * Bytes to copy of a frame of so many. The payload of a super-packet's later packets is far behind the first's:
 * it is copied whole, and the worker slices its packets.
 */
static __always_inline __u32 captured_length(__u32 length, const struct xtee_record *header)
{
	if (!header->snaplen || header->gso_size)
		return length;
	__u32 needed = needed_bytes(header->snaplen);
	return needed < length ? needed : length;
}

static __always_inline int tap(struct __sk_buff *skb, const __u32 direction, const __u8 link)
{
	struct ethernet_header ethernet;
	struct packet_facts facts = {};
	struct verdict verdict = {};
	struct xtee_record header = {};
	__u32 zero = 0, offset = 0;
	struct xtee_counters *counters = this_cpu_counters();

	if (!counters)
		return TC_ACT_UNSPEC;
	__u32 generation = *(volatile __u32 *)&control.generation;
	__u32 slot = generation & 1;
	void *slot_map = bpf_map_lookup_elem(&policies, &slot);
	if (!slot_map)
		return TC_ACT_UNSPEC;
	const struct xtee_policy *policy = bpf_map_lookup_elem(slot_map, &zero);
	if (!policy)
		return TC_ACT_UNSPEC;

	/* Shorter than its link's header: no frame that anyone could be given. */
	if (!parse_link(skb, direction, link, &ethernet, &offset, &facts))
		return TC_ACT_UNSPEC;
	if (direction == XTEE_OUT && is_own_copy(skb, &facts)) {
		counters->own_copies += wire_packets(skb, &facts, &header);
		return TC_ACT_UNSPEC;
	}

	__u32 packets = wire_packets(skb, &facts, &header);
	counters->seen += packets;
	facts.direction = direction;
	match(policy, slot, &facts, skb->mark, direction, &verdict);
	count_rule(counters, verdict.rule, packets);
	if (!verdict.mirror) {
		counters->unmatched += packets;
		return TC_ACT_UNSPEC;
	}
	counters->matched += packets;
	if (verdict.unknown_ports)
		counters->unknown_fragments += packets;
	if (!policy->allow_credential_endpoints && is_sensitive(&facts)) {
		counters->dropped[XTEE_DROP_sensitive] += packets;
		return TC_ACT_UNSPEC;
	}

	__u32 length = skb->len - offset + (link == XTEE_LINK_ETHERNET ? 0 : XTEE_ETH_HEADER);

	header.timestamp = bpf_ktime_get_ns();
	header.wire_length = length;
	header.captured_length = length;
	const struct xtee_slice *slice = slice_of(policy, verdict.rule);
	if (slice) {
		__u32 reason = left_out(skb, &ethernet, &facts, slice, length);

		if (reason < XTEE_DROP_COUNT) {
			counters->dropped[reason] += packets;
			count_left_out(counters, verdict.rule, packets);
			return TC_ACT_UNSPEC;
		}
		header.snaplen = slice->snaplen;
		header.captured_length = captured_length(length, &header);
	}
	header.flow_hash = flow_hash(&ethernet, &facts);
	header.generation = generation;
	header.direction = direction;
	header.rule = verdict.rule;
	header.link_type = link;
	if (skb->vlan_present) {
		header.wire_length += sizeof(struct vlan_tag);
		header.vlan_tci = skb->vlan_tci;
		header.vlan_protocol = bpf_ntohs(skb->vlan_proto);
	}
	checksum_state(skb, &header);
	header.checksum_start += (link == XTEE_LINK_ETHERNET ? 0 : XTEE_ETH_HEADER) - offset;

	/* The hash's high bits choose the ring, its low bits the outer source port: independent of each other. */
	__u32 ring_index = (__u64)header.flow_hash * ring_count >> 32;
	switch (copy(skb, &header, &ethernet, offset, ring_index)) {
	case COPIED:
		counters->captured += packets;
		break;
	case RING_FULL:
		counters->dropped[XTEE_DROP_ring] += packets;
		break;
	case UNREADABLE:
		counters->dropped[XTEE_DROP_unreadable] += packets;
		break;
	case TOO_LARGE:
		counters->dropped[XTEE_DROP_super_packet] += packets;
		break;
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int xtee_ingress(struct __sk_buff *skb)
{
	return tap(skb, XTEE_IN, XTEE_LINK_ETHERNET);
}

SEC("tc")
int xtee_egress(struct __sk_buff *skb)
{
	return tap(skb, XTEE_OUT, XTEE_LINK_ETHERNET);
}

/* The same for devices whose packets begin with the IP header. */
SEC("tc")
int xtee_ingress_ip(struct __sk_buff *skb)
{
	return tap(skb, XTEE_IN, XTEE_LINK_IP);
}

SEC("tc")
int xtee_egress_ip(struct __sk_buff *skb)
{
	return tap(skb, XTEE_OUT, XTEE_LINK_IP);
}

/* bpf_probe_read_kernel is offered to GPL-compatible programs only. */
char _license[] SEC("license") = "Dual MIT/GPL";
