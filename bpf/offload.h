/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What the kernel left to the hardware in a frame: segmentation and the checksum.
 *
 * Both stand in struct sk_buff, which a tc program reaches with the kfunc bpf_cast_to_kern_ctx (6.2).
 * Without it the record says "unknown" and the worker decides from the headers.
 */
#ifndef XTEE_OFFLOAD_H
#define XTEE_OFFLOAD_H

#define CHECKSUM_PARTIAL 3 /* include/linux/skbuff.h */

/* SKB_GSO_* of include/linux/skbuff.h; values are the same from 5.15 on. */
#define GSO_TCP (1u << 0 | 1u << 4)
#define GSO_UDP (1u << 17)
#define GSO_TUNNEL (0x3fu << 6) /* GRE, GRE_CSUM, IPXIP4, IPXIP6, UDP_TUNNEL, UDP_TUNNEL_CSUM */

struct sk_buff___xtee {
	__u8 ip_summed : 2;
	__u16 csum_start;
	__u16 csum_offset;
	__u16 network_header;
	unsigned char *head;
	unsigned char *data;
	unsigned int end;
} __attribute__((preserve_access_index));

struct skb_shared_info___xtee {
	unsigned int gso_type;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *) __ksym __weak;

/* Writes the kind into the header; true where the kernel says that the pieces are those of a tunnel's inner packet. */
static __always_inline bool gso_kind(struct __sk_buff *skb, struct xtee_record *header)
{
	unsigned int type = 0;

	header->gso = XTEE_GSO_UNKNOWN;
	if (!bpf_ksym_exists(bpf_cast_to_kern_ctx))
		return false;
	struct sk_buff___xtee *kernel = bpf_cast_to_kern_ctx(skb);
	struct skb_shared_info___xtee *shared = (void *)(kernel->head + kernel->end);
	if (bpf_probe_read_kernel(&type, sizeof(type), &shared->gso_type))
		return false;
	if (type & GSO_TUNNEL)
		return true;
	if (type & GSO_TCP)
		header->gso = XTEE_GSO_TCP;
	else if (type & GSO_UDP)
		header->gso = XTEE_GSO_UDP;
	return false;
}

/*
 * How many packets this frame is on the wire, and of what kind. From the lengths, as the worker cuts
 * it: gso_segs is unset in frames from virtio and tun. Where the kind is not told, UDP may be a tunnel,
 * and gso_segs comes first.
 */
static __always_inline __u32 wire_packets(struct __sk_buff *skb, const struct packet_facts *facts,
					  struct xtee_record *header)
{
	__u32 packets = 1, size = skb->gso_size, headers = 0;

	if (!size) {
		header->segments = 1;
		return 1;
	}
	bool tunnel = gso_kind(skb, header);
	header->gso_size = size;
	if (!tunnel && facts->protocol == 6 && facts->transport) {
		__u16 length_word;

		if (XTEE_LOAD(skb, facts->transport + 12, length_word))
			headers = facts->transport + (bpf_ntohs(length_word) >> 12) * 4;
	} else if (!tunnel && facts->protocol == 17 && facts->transport &&
		   (header->gso == XTEE_GSO_UDP || (header->gso == XTEE_GSO_UNKNOWN && !skb->gso_segs))) {
		headers = facts->transport + 8;
	}
	if (headers && skb->len > headers)
		packets = (skb->len - headers + size - 1) / size;
	else if (skb->gso_segs)
		packets = skb->gso_segs;
	if (packets > 0xffff)
		packets = 0xffff;
	header->segments = packets;
	return packets;
}

static __always_inline void checksum_state(struct __sk_buff *skb, struct xtee_record *header)
{
	header->checksum = XTEE_CHECKSUM_UNKNOWN;
	if (!bpf_ksym_exists(bpf_cast_to_kern_ctx))
		return;
	struct sk_buff___xtee *kernel = bpf_cast_to_kern_ctx(skb);
	if (BPF_CORE_READ_BITFIELD(kernel, ip_summed) != CHECKSUM_PARTIAL) {
		header->checksum = XTEE_CHECKSUM_FINISHED;
		return;
	}
	header->checksum = XTEE_CHECKSUM_UNFINISHED;
	header->checksum_start = kernel->csum_start - (kernel->data - kernel->head);
	header->checksum_offset = kernel->csum_offset;
}

#endif
