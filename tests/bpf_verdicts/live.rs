//! What BPF_PROG_TEST_RUN cannot say: stripped VLAN tags, kinds of super-packets, unfinished checksums.
//! Real frames on a veth pair, with the tap attached.

use std::ffi::CString;
use std::time::Duration;

use xtee::bpf::tap::Hold;
use xtee::packet::flow::hash_frame;
use xtee::packet::link::LinkType;
use xtee::packet::{wire_packets, Checksum, Direction, Gso, VlanTag};

use crate::bpf_run::{Copy, TapBench};
use crate::common::netns::{veth, wait_until, Namespace, VethEnd};
use crate::common::raw_socket::RawSocket;
use crate::offload_socket::{self, Offload, OffloadSocket};
use crate::packets::{self, frame6, ipv6, tagged, tcp, tcp4, udp, IPV4, IPV6, TCP, UDP, V4};
use crate::require_root;
use crate::{mirror, skip, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";

/// t0, tapped ── p0
struct Wire {
    tapped: Namespace,
    peer: Namespace,
    bench: TapBench,
    hold: Option<Hold>,
}

/// The index of an interface of the calling thread's namespace.
pub fn index(interface: &str) -> u32 {
    let name = CString::new(interface).expect("interface name");
    // SAFETY: the name ends with a NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{interface}");
    index
}

impl Wire {
    fn new(clsact: bool) -> Wire {
        let (tapped, peer) = (Namespace::new(), Namespace::new());
        veth(&VethEnd::new(&tapped, "t0"), &VethEnd::new(&peer, "p0"));
        let mut bench = TapBench::with_rings(1, 1 << 20);
        bench.rules(&[], None);
        let hold = {
            let _there = tapped.enter();
            let programs = bench.tap.programs(LinkType::Ethernet).expect("programs");
            let attached = if clsact {
                programs.attach_clsact(index("t0"), "t0")
            } else {
                programs.attach_tcx(index("t0"), "t0")
            };
            attached.expect("attach")
        };
        Wire {
            tapped,
            peer,
            bench,
            hold: Some(hold),
        }
    }

    fn sender(&self, direction: Direction) -> (&Namespace, &'static str) {
        match direction {
            Direction::In => (&self.peer, "p0"),
            Direction::Out => (&self.tapped, "t0"),
        }
    }

    /// The one copy that comes, its balance checked.
    fn copy(&mut self, direction: Direction) -> Copy {
        let mut copies = Vec::new();
        wait_until("a copy", Duration::from_secs(5), || {
            copies.extend(self.bench.copies());
            !copies.is_empty()
        });
        assert_eq!(copies.len(), 1);
        let copy = copies.remove(0);
        let added = self.bench.added();
        assert_eq!(added.captured, u64::from(copy.meta.segments));
        assert_eq!(
            (added.seen, added.dropped.iter().sum::<u64>()),
            (added.captured, 0)
        );
        assert_eq!(copy.meta.direction, direction);
        assert_eq!(copy.meta.generation, self.bench.generation());
        copy
    }
}

#[test]
fn both_hooks_give_each_frame_once() {
    require_root!();
    for clsact in [false, true] {
        let mut wire = Wire::new(clsact);
        for direction in [Direction::In, Direction::Out, Direction::In] {
            let frame = tcp4(A, 1, B, 2);
            let (namespace, interface) = wire.sender(direction);
            RawSocket::open(namespace, interface).send(&frame);
            let copy = wire.copy(direction);
            assert_eq!(copy.bytes, frame);
            assert_eq!(copy.meta.checksum, Checksum::Finished);
            assert_eq!(copy.meta.wire_length as usize, frame.len());
        }
        {
            // The filter of clsact is found by its interface's number.
            let _there = wire.tapped.enter();
            drop(wire.hold.take());
        }
        let (namespace, interface) = wire.sender(Direction::Out);
        RawSocket::open(namespace, interface).send(&tcp4(A, 1, B, 2));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(wire.bench.added().seen, 0, "detached");
    }
}

/// The kernel takes the outermost tag out before the ingress hook; the record has it.
#[test]
fn stripped_tags_are_in_the_record() {
    require_root!();
    let mut wire = Wire::new(false);
    let packet = V4::new(A, B, UDP).packet(&udp(40000, 53, b"query"));
    let packet6 = ipv6(
        "2001:db8::1",
        "2001:db8::2",
        &[],
        UDP,
        &udp(40000, 53, b"query"),
    );
    for (tags, ethertype, packet) in [
        (vec![(0x8100, 7)], IPV4, &packet),
        (vec![(0x8100, 0xeffe)], IPV6, &packet6),
        (vec![(0x88a8, 0x2fff)], IPV4, &packet),
        (vec![(0x8100, 0)], IPV4, &packet),
        (vec![(0x88a8, 7), (0x8100, 8)], IPV4, &packet),
    ] {
        let frame = tagged(&tags, ethertype, packet);
        let (namespace, interface) = wire.sender(Direction::In);
        RawSocket::open(namespace, interface).send(&frame);
        let copy = wire.copy(Direction::In);
        let (protocol, tci) = tags[0];
        assert_eq!(copy.meta.vlan, Some(VlanTag { tci, protocol }));
        assert_eq!(copy.bytes, tagged(&tags[1..], ethertype, packet));
        assert_eq!(copy.meta.wire_length as usize, frame.len());
        assert_eq!(copy.meta.byte_length(), copy.bytes.len());
        assert_eq!(
            copy.meta.flow_hash,
            hash_frame(&frame),
            "tags are no part of the flow"
        );

        // Nobody strips it on the way out.
        let (namespace, interface) = wire.sender(Direction::Out);
        RawSocket::open(namespace, interface).send(&frame);
        let copy = wire.copy(Direction::Out);
        assert_eq!((copy.meta.vlan, copy.bytes), (None, frame));
    }
}

/// (frame, what was left to the device, the kind that the record must say)
fn super_packets(payload: usize, gso_size: u16) -> Vec<(Vec<u8>, Offload, Gso)> {
    let data = vec![0xa5; payload];
    let six =
        |protocol, transport: &[u8]| frame6("2001:db8::1", "2001:db8::2", &[], protocol, transport);
    let offload = |kind, network: u16, transport: u16, field| Offload {
        kind,
        header_length: 14 + network + transport,
        gso_size,
        checksum: (14 + network, field),
    };
    let tcp = tcp(40000, 443, &data);
    let udp = udp(40000, 443, &data);
    vec![
        (
            V4::new(A, B, TCP).frame(&tcp),
            offload(offload_socket::TCP4, 20, 20, 16),
            Gso::Tcp,
        ),
        (
            six(TCP, &tcp),
            offload(offload_socket::TCP6, 40, 20, 16),
            Gso::Tcp,
        ),
        (
            V4::new(A, B, UDP).frame(&udp),
            offload(offload_socket::UDP, 20, 8, 6),
            Gso::Udp,
        ),
        (
            six(UDP, &udp),
            offload(offload_socket::UDP, 40, 8, 6),
            Gso::Udp,
        ),
    ]
}

#[test]
fn super_packets_are_one_record_of_many_packets() {
    require_root!();
    let mut wire = Wire::new(false);
    for (payload, gso_size) in [(3000, 1000), (3001, 1000), (2000, 1400), (60000, 1400)] {
        for (frame, offload, gso) in super_packets(payload, gso_size) {
            // UDP takes 64 or 128 segments at most, IPv4 64 KiB.
            for direction in [Direction::Out, Direction::In] {
                let (namespace, interface) = wire.sender(direction);
                OffloadSocket::open(namespace, interface).send(&frame, offload);
                let copy = wire.copy(direction);
                let meta = copy.meta;
                assert_eq!(copy.bytes.len(), frame.len(), "{offload:?} {direction:?}");
                assert_eq!(meta.gso, gso, "{offload:?} {direction:?}");
                assert_eq!(meta.gso_size, gso_size);
                assert_eq!(
                    usize::from(meta.segments),
                    payload.div_ceil(usize::from(gso_size))
                );
                assert_eq!(
                    wire_packets(&meta, &copy.bytes),
                    Some(u32::from(meta.segments))
                );
                assert_eq!(meta.flow_hash, hash_frame(&frame));
                let (start, offset) = offload.checksum;
                assert_eq!(meta.checksum, Checksum::Unfinished { start, offset });
            }
        }
    }
}

#[test]
fn unfinished_checksums_are_told() {
    require_root!();
    let mut wire = Wire::new(false);
    let frame = V4::new(A, B, UDP).frame(&packets::udp(1, 2, b"payload"));
    let offload = Offload {
        kind: offload_socket::NO_GSO,
        header_length: 42,
        gso_size: 0,
        checksum: (34, 6),
    };
    for direction in [Direction::Out, Direction::In] {
        let (namespace, interface) = wire.sender(direction);
        OffloadSocket::open(namespace, interface).send(&frame, offload);
        let copy = wire.copy(direction);
        assert_eq!(copy.bytes, frame);
        assert_eq!((copy.meta.gso, copy.meta.segments), (Gso::None, 1));
        assert_eq!(
            copy.meta.checksum,
            Checksum::Unfinished {
                start: 34,
                offset: 6
            }
        );
    }
}

/// BPF_PROG_TEST_RUN refuses a frame whose IP header is cut off; a wire does not.
#[test]
fn frames_cut_within_the_ip_header() {
    require_root!();
    let mut wire = Wire::new(false);
    let rules = [
        skip().network("0.0.0.0/0"),
        skip().network("::/0"),
        mirror(),
    ];
    wire.bench.rules(&rules, None);
    let whole = [
        tcp4(A, 1, B, 2),
        frame6("2001:db8::1", "2001:db8::2", &[], TCP, &tcp(1, 2, b"")),
    ];
    for direction in [Direction::In, Direction::Out] {
        let (namespace, interface) = wire.sender(direction);
        let socket = RawSocket::open(namespace, interface);
        for (whole, header) in whole.iter().zip([20, 40]) {
            for length in 14..=14 + header {
                let frame = &whole[..length];
                socket.send(frame);
                if length < 14 + header {
                    // Not IP, so the last rule.
                    let copy = wire.copy(direction);
                    assert_eq!((copy.meta.rule, copy.bytes.as_slice()), (2, frame));
                    assert_eq!(copy.meta.flow_hash, hash_frame(frame));
                    continue;
                }
                let mut skipped = 0;
                wait_until("the packet", Duration::from_secs(5), || {
                    skipped += wire.bench.added().unmatched;
                    skipped == 1
                });
            }
        }
    }
}
