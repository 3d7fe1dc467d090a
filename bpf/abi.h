/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * All that the BPF programs and the Rust side share: limits, reasons, the ring record, counters, policy.
 *
 * Fixed-width fields, explicit padding, byte order in the comment. Rust takes these types from the
 * generated skeleton and the reasons from the list below (bpf/build.rs), never from a copy by hand.
 */
#ifndef XTEE_ABI_H
#define XTEE_ABI_H

#define XTEE_MAX_RULES 64
#define XTEE_DEFAULT_RULE 255u /* the record's rule number when no rule took the packet */
#define XTEE_MAX_RINGS 64
#define XTEE_MAX_PORT_CLASSES 4096
#define XTEE_NO_PORT 65536
#define XTEE_NOT_IP 256
#define XTEE_MAX_OWN_FLOWS 16
/*
 * A frame is copied to the worker up to here whatever the snaplen, and shortened there: the worker looks for our
 * own copies in this many bytes (src/packet/signature.rs), and a snaplen must not blind the loop guard.
 */
#define XTEE_SEARCHED_BYTES 256

/*
 * Why a packet that matched was not copied, or why a copy did not leave. One list for the kernel
 * programs, the workers, `xtee status` and the final balance.
 */
#define XTEE_DROP_REASONS(X)                                              \
	X(ring, "the ring or the AF_XDP socket was full")                 \
	X(sensitive, "to or from a cloud credential endpoint")            \
	X(super_packet, "a super-packet larger than the largest record")  \
	X(unreadable, "the kernel could not read the packet's bytes")     \
	X(headroom, "XDP had no room for the outer header")               \
	X(no_socket, "arrived on a queue without an AF_XDP socket")       \
	X(malformed, "a super-packet that cannot be cut into packets")    \
	X(loop_breaker, "our own copies came back, or errors about them") \
	X(oversize, "the copy does not fit the path MTU")                 \
	X(tx_full, "the transmit ring was full")                          \
	X(no_route, "no route to the target")                             \
	X(no_neighbour, "the next hop's MAC address is unknown")          \
	X(congested, "the device or its queue refused the copy")          \
	X(send_error, "the kernel refused to send")                       \
	X(shutdown, "still queued when the mirror was stopped")           \
	X(not_ip, "not IP, which is all that the target takes")           \
	X(limit, "above the target's limit")                              \
	X(budget, "all targets together were above the budget")           \
	X(load, "the machine was busy: production goes first")            \
	X(allowance, "the instance exceeded a network allowance")         \
	X(sampled, "of a flow that `sample` leaves out")                  \
	X(cutoff, "of a flow that has had its `cutoff` of bytes")         \
	X(writer_full, "the capture's writer was too slow")               \
	X(write_error, "the capture could not be written")                \
	X(dry_run, "only counted: the target is a dry run")

enum xtee_drop_reason {
#define XTEE_REASON_ENUM(name, text) XTEE_DROP_##name,
	XTEE_DROP_REASONS(XTEE_REASON_ENUM)
#undef XTEE_REASON_ENUM
		XTEE_DROP_COUNT
};

enum xtee_direction {
	XTEE_IN = 0, /* ingress of the tapped interface */
	XTEE_OUT = 1,
};

enum xtee_gso {
	XTEE_GSO_NONE = 0,
	XTEE_GSO_TCP = 1,
	XTEE_GSO_UDP = 2,
	XTEE_GSO_UNKNOWN = 3, /* a tunnel's, or this kernel does not tell */
};

enum xtee_checksum {
	XTEE_CHECKSUM_UNKNOWN = 0, /* this kernel does not tell */
	XTEE_CHECKSUM_FINISHED = 1,
	XTEE_CHECKSUM_UNFINISHED = 2, /* CHECKSUM_PARTIAL */
};

/* What the packets of a device begin with. */
enum xtee_link {
	XTEE_LINK_ETHERNET = 1,
	XTEE_LINK_IP = 2, /* the record's Ethernet header is synthetic */
};

/* One captured frame: this header, then captured_length bytes from the Ethernet header on. */
struct xtee_record {
	__u64 timestamp;       /* ns, CLOCK_MONOTONIC */
	__u32 wire_length;     /* bytes, a stripped VLAN tag included */
	__u32 captured_length; /* bytes that follow */
	__u32 flow_hash;       /* equal in both directions */
	__u32 generation;      /* of the rule set that decided */
	__u16 gso_size;        /* payload bytes of a segment, 0 for an ordinary frame */
	__u16 segments;        /* packets on the wire, at least 1 */
	__u16 checksum_start;  /* bytes from the frame's start, where unfinished */
	__u16 checksum_offset; /* bytes from checksum_start to the field */
	__u16 vlan_tci;        /* host order */
	__u16 vlan_protocol;   /* host order, 0 without a stripped tag */
	__u8 direction;        /* enum xtee_direction */
	__u8 rule;             /* 0..63 or XTEE_DEFAULT_RULE */
	__u8 link_type;        /* enum xtee_link */
	__u8 checksum;         /* enum xtee_checksum */
	__u8 gso;              /* enum xtee_gso */
	__u8 padding[3];
	__u32 snaplen; /* bytes of each packet on the wire that are wanted, 0: all */
};
_Static_assert(sizeof(struct xtee_record) == 48, "the ring record's header");

/* In front of a span's frame, where a rule has a snaplen: what the worker cannot know from the bytes. */
struct xtee_note {
	__u32 snaplen;     /* bytes that are wanted, 0: all */
	__u32 wire_length; /* bytes of the frame before it was cut */
};
_Static_assert(sizeof(struct xtee_note) == 8, "the metadata of a span's frame");

/* One value a CPU; written by the programs alone, read by the control plane. Unit: packets on the wire. */
struct xtee_counters {
	__u64 seen; /* unmatched + matched; our own copies are in own_copies alone */
	__u64 unmatched;
	__u64 matched;
	__u64 captured;
	__u64 own_copies;
	__u64 unknown_fragments; /* later fragments copied because their first was not seen */
	__u64 dropped[XTEE_DROP_COUNT];
	__u64 rules[XTEE_MAX_RULES + 1]; /* packets that each rule took; the last is the default action */
	__u64 left_out[XTEE_MAX_RULES];  /* of those, what its `sample` and `cutoff` dropped */
};

/* Three sets of rules, a bit each: whose source, destination or either-end condition holds here. */
struct xtee_bits {
	__u64 source;
	__u64 destination;
	__u64 either;
};

/* How much of what it takes a rule copies. */
struct xtee_slice {
	__u64 cutoff;       /* bytes of a flow and direction, 0: all */
	__u32 snaplen;      /* bytes of a packet, 0: all */
	__u32 sample_limit; /* flows whose sample_hash() is larger are left out; 0xffffffff leaves none out */
};

/* A compiled rule set: bit i of each word is rule i. See src/mirror/tables.rs. */
struct xtee_policy {
	__u64 all;
	__u64 mirror;
	__u64 needs_ports;
	__u64 needs_networks;
	__u64 needs_mark;
	__u64 sliced; /* rules with a word in `slices` */
	__u64 direction[2];
	__u64 protocol[XTEE_NOT_IP + 1];
	__u64 mark[4][256]; /* by byte of the mark, least significant first */
	struct xtee_bits no_network;
	__u32 generation;
	__u8 default_mirror;
	__u8 allow_credential_endpoints;
	__u16 padding;
	struct xtee_slice slices[XTEE_MAX_RULES];
	struct xtee_bits port_classes[XTEE_MAX_PORT_CLASSES];
	__u16 port_class_of[XTEE_NO_PORT + 1]; /* by port in host order */
	__u16 padding2[3];
};

struct xtee_network4_key {
	__u32 prefix_length; /* bits */
	__u32 address;       /* network order */
};

struct xtee_network6_key {
	__u32 prefix_length; /* bits */
	__u32 address[4];    /* network order */
};

/*
 * The outer flow of our own copies: never copied again. The tunnel header is told by two words of it, compared
 * as they stand on the wire under a mask; their places count from the end of the outer IP header.
 */
struct xtee_own_flow {
	__u32 destination[4]; /* network order; IPv4 in the first word, the others 0 */
	__u32 header;         /* at header_offset, in network order like all four */
	__u32 header_mask;
	__u32 identifier; /* VNI, key or session, at identifier_offset; a mask of 0: the tunnel has none */
	__u32 identifier_mask;
	__u16 destination_port; /* host order, 0 where there are no ports */
	__u16 source_port_first;
	__u16 source_port_last; /* inclusive */
	__u8 family;            /* 4 or 6 */
	__u8 protocol;          /* IPPROTO_UDP or IPPROTO_GRE */
	__u8 header_offset;     /* bytes */
	__u8 identifier_offset; /* bytes */
	__u8 padding[2];
};

/* Written by the control plane while the programs run; each word by itself. */
struct xtee_control {
	__u32 generation; /* the low bit says which of the two policy slots is in force */
	__u32 own_flow_count;
	struct xtee_own_flow own_flows[XTEE_MAX_OWN_FLOWS];
};

/* One cache line a ring: the poller says here that it sleeps. */
struct xtee_sleeper {
	__u32 asleep;
	__u32 padding[15];
};

/* What the mark learned for a flow. */
struct xtee_learned {
	__u64 seen; /* ns, CLOCK_MONOTONIC */
	__u32 mark;
	__u32 padding;
};

struct xtee_flow_key {
	__u32 low[4]; /* the smaller endpoint, network order */
	__u32 high[4];
	__u16 low_port; /* host order */
	__u16 high_port;
	__u32 protocol;
};

/* One direction of a flow, as one hook sees it, and what `cutoff` has counted of it. */
struct xtee_stream_key {
	__u32 source[4]; /* network order */
	__u32 destination[4];
	__u16 source_port; /* host order */
	__u16 destination_port;
	__u16 protocol;
	__u16 family_and_direction; /* 4 or 6 above, enum xtee_direction below */
};

struct xtee_stream {
	__u64 bytes; /* of frames */
	__u64 seen;  /* ns, CLOCK_MONOTONIC; to a second */
};

struct xtee_fragment_key {
	__u32 source[4];
	__u32 destination[4];
	__u32 identification;
	__u32 protocol;
};

struct xtee_fragment {
	__u64 seen;        /* ns, CLOCK_MONOTONIC */
	__u16 source_port; /* host order */
	__u16 destination_port;
	__u16 protocol; /* behind all extension headers */
	__u16 ports;    /* whether the ports are known */
};

#endif
