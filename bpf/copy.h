/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * One copy of a matched frame into a ring: reserve, fill, submit. Never waits: a full ring drops and counts.
 *
 * A ring-buffer record needs a size that the verifier knows, so records come in classes, each a few
 * bytes above a size that is common on the wire.
 */
#ifndef XTEE_COPY_H
#define XTEE_COPY_H

enum copy_result { COPIED, RING_FULL, UNREADABLE, TOO_LARGE };

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
};

/* One ring a worker; user space makes them in the size that the config asks for. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, XTEE_MAX_RINGS);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

/* User space maps this and says there that it sleeps. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, XTEE_MAX_RINGS);
	__type(key, __u32);
	__type(value, struct xtee_sleeper);
} sleepers SEC(".maps");

/*
 * The poller is woken only when it has said that it sleeps: a wake-up costs ten times a record.
 * Dekker's protocol: it writes `asleep`, then a barrier, then tests the producer position. Here the
 * reserve moved the producer position; a full barrier; then the flag is read. One of the two sees the
 * other. The exchange on a local word is that barrier (BPF atomics that return a value are fully
 * ordered, Documentation/bpf/standardization/instruction-set.rst).
 */
static __always_inline __u64 wake_flags(__u32 ring_index)
{
	__u32 barrier_word = 0;
	struct xtee_sleeper *sleeper = bpf_map_lookup_elem(&sleepers, &ring_index);

	if (!sleeper)
		return BPF_RB_NO_WAKEUP;
	__u32 old = __sync_lock_test_and_set(&barrier_word, 1);
	asm volatile("" : : "r"(old) : "memory");
	if (*(volatile __u32 *)&sleeper->asleep && __sync_lock_test_and_set(&sleeper->asleep, 0))
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

/* Copies into a record of this class, behind the synthetic Ethernet header of a device that has none. */
static __always_inline enum copy_result copy_class(struct __sk_buff *skb, void *ring, __u32 ring_index,
						   const struct xtee_record *header,
						   const struct ethernet_header *ethernet, __u32 offset,
						   const __u32 synthetic, __u32 length, const __u32 class)
{
	struct xtee_record *record = bpf_ringbuf_reserve(ring, sizeof(*record) + class, 0);

	if (!record)
		return RING_FULL;
	*record = *header;
	void *bytes = record + 1;
	if (synthetic) {
		*(struct ethernet_header *)bytes = *ethernet;
		bytes += XTEE_ETH_HEADER;
	}
	/*
	 * Known to fit here; said again in a form that the verifier keeps across the call. Two tests, kept apart:
	 * the compiler would make one of them, on a copy of the register.
	 */
	length &= 0x1ffff;
	if (length > class - synthetic)
		goto unreadable;
	asm volatile("" : "+r"(length));
	if (length == 0)
		goto unreadable;
	if (bpf_skb_load_bytes(skb, offset, bytes, length))
		goto unreadable;
	bpf_ringbuf_submit(record, wake_flags(ring_index));
	return COPIED;
unreadable:
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
	return UNREADABLE;
}

#define XTEE_COPY_CLASS(class)             \
	if (length <= (class) - synthetic) \
	return copy_class(skb, ring, ring_index, header, ethernet, offset, synthetic, length, class)

static __always_inline enum copy_result copy_behind(struct __sk_buff *skb, const struct xtee_record *header,
						    const struct ethernet_header *ethernet, __u32 offset,
						    __u32 ring_index, const __u32 synthetic)
{
	__u32 length = header->captured_length - synthetic;
	void *ring = bpf_map_lookup_elem(&rings, &ring_index);

	if (!ring)
		return RING_FULL;
	XTEE_COPY_CLASS(80);
	XTEE_COPY_CLASS(128);
	XTEE_COPY_CLASS(256);
	XTEE_COPY_CLASS(512);
	XTEE_COPY_CLASS(1024);
	XTEE_COPY_CLASS(1536);
	XTEE_COPY_CLASS(3072);
	XTEE_COPY_CLASS(9216);
	XTEE_COPY_CLASS(16384);
	XTEE_COPY_CLASS(32768);
	XTEE_COPY_CLASS(49152);
	XTEE_COPY_CLASS(65600);
	return TOO_LARGE;
}

/*
 * Copies header->captured_length bytes of the packet, from offset on. A global function, so that the verifier
 * proves its classes once and not behind every path that leads here.
 */
__attribute__((noinline)) int copy(struct __sk_buff *skb, const struct xtee_record *header,
				   const struct ethernet_header *ethernet, __u32 offset, __u32 ring_index)
{
	if (!header || !ethernet)
		return UNREADABLE;
	if (header->link_type == XTEE_LINK_ETHERNET)
		return copy_behind(skb, header, ethernet, offset, ring_index, 0);
	return copy_behind(skb, header, ethernet, offset, ring_index, XTEE_ETH_HEADER);
}

#endif
