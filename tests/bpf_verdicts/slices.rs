//! How much of what it takes a rule copies: snaplen, whole flows, the beginning of a flow.

use xtee::mirror::rules::Rule;
use xtee::mirror::slice::{Sample, Slice};
use xtee::packet::{cut, Direction, Packets};
use xtee::reason::Reason;

use crate::bpf_run::{dropped, Context, Seen, SteerBench, TapBench, ALL, XDP_DROP, XDP_PASS};
use crate::packets::{self, frame6, tcp, tcp4, udp, udp4, Extension, TCP, UDP, V4};
use crate::{mirror, require_root, skip, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const LONG: [u8; 1400] = [0x5a; 1400];

fn with(slice: Slice) -> Rule {
    let mut rule = mirror();
    rule.slice = slice;
    rule
}

fn sampled(kept: u32, of: u32) -> Rule {
    with(Slice {
        sample: Sample::new(kept, of),
        ..Slice::WHOLE
    })
}

fn cut_off(bytes: u64) -> Rule {
    with(Slice {
        cutoff: Some(bytes),
        ..Slice::WHOLE
    })
}

fn snaplen(snaplen: u32) -> Rule {
    with(Slice {
        snaplen,
        ..Slice::WHOLE
    })
}

fn kept(seen: &Seen) -> bool {
    assert_eq!(seen.added.matched, 1);
    seen.copy.is_some()
}

#[test]
fn only_the_snaplen_is_copied_and_lengths_stay_honest() {
    require_root!();
    let mut tap = TapBench::new();
    let frame = udp4(A, 1000, B, 53, &LONG);
    for length in [64, 128, 255, 257, 1000, frame.len() as u32, 65535] {
        tap.rules(&[snaplen(length)], None);
        let seen = tap.run(Direction::In, &frame);
        let copy = seen.copy.expect("copied");
        assert_eq!(seen.added.captured, 1, "a snaplen changes no packet count");
        assert_eq!(copy.meta.wire_length as usize, frame.len());
        // What the loop guard looks at is copied whatever the snaplen; not a byte more.
        assert_eq!(copy.bytes.len(), frame.len().min(length.max(256) as usize));
        let mut packets = Packets::default();
        assert_eq!(cut(&copy.meta, &copy.bytes, 0, &mut packets), Ok(1));
        let packet = packets.refs()[0];
        assert_eq!(packet.length(), frame.len().min(length as usize));
        assert_eq!(packet.tail_bytes(&copy.bytes), &frame[..packet.length()]);
    }
    // Another rule's packets are whole.
    tap.rules(&[snaplen(64).protocol(6), mirror()], None);
    let copy = tap.run(Direction::Out, &frame).copy.expect("copied");
    assert_eq!((copy.meta.snaplen, copy.bytes.len()), (0, frame.len()));
}

#[test]
fn each_packet_of_a_super_packet_is_sliced() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[snaplen(100)], None);
    let payload: Vec<u8> = (0..3000u32).map(|number| number as u8).collect();
    let frame = V4::new(A, B, TCP).frame(&tcp(1000, 443, &payload));
    let context = Context {
        gso_size: 1400,
        gso_segs: 3,
        ..Context::default()
    };
    let seen = tap.run_with(Direction::Out, &frame, context);
    assert_eq!(seen.added.captured, 3);
    let copy = seen.copy.expect("copied");
    let mut packets = Packets::default();
    assert_eq!(cut(&copy.meta, &copy.bytes, 0, &mut packets), Ok(3));
    assert_eq!(packets.sliced(), 3);
    for (index, packet) in packets.refs().iter().enumerate() {
        let mut bytes = vec![0; 2000];
        let length = packets
            .write(packet, &copy.bytes, &mut bytes)
            .expect("room");
        assert_eq!(length, 100);
        // The lengths are those of the wire, the payload is this packet's own.
        let whole = [1400, 1400, 200][index];
        assert_eq!(bytes[16..18], (40 + whole as u16).to_be_bytes());
        assert_eq!(bytes[38..42], (1 + 1400 * index as u32).to_be_bytes());
        assert_eq!(bytes[54..100], payload[1400 * index..][..46]);
    }
}

#[test]
fn a_sample_is_of_whole_flows_in_both_directions() {
    require_root!();
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::new(0));
    tap.rules(&[sampled(1, 4)], None);
    steer.rules(&[sampled(1, 4)], None);
    let mut count = 0;
    for port in 0..256u16 {
        let there = tcp4(A, 20000 + port, B, 443);
        let back = tcp4(B, 443, A, 20000 + port);
        let first = tap.run(Direction::Out, &there);
        assert_eq!(
            first.dropped(Reason::Sampled),
            u64::from(first.copy.is_none())
        );
        assert_eq!(first.added.left_out[0], u64::from(first.copy.is_none()));
        let keeps = kept(&first);
        for _ in 0..2 {
            assert_eq!(kept(&tap.run(Direction::Out, &there)), keeps);
            assert_eq!(kept(&tap.run(Direction::In, &back)), keeps);
        }
        for frame in [&there, &back] {
            let (output, added) = steer.run(frame);
            assert_eq!(dropped(&added, Reason::Sampled), u64::from(!keeps));
            assert_eq!(output.verdict, if keeps { XDP_PASS } else { XDP_DROP });
        }
        count += usize::from(keeps);
    }
    assert!((32..=96).contains(&count), "{count} of 256 flows with 1/4");
}

#[test]
fn fragments_go_the_way_of_their_flow() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[sampled(1, 2)], None);
    let mut ways = [0, 0];
    for port in 0..64u16 {
        let from = 30000 + port;
        let whole = udp4(A, from, B, 53, b"whole");
        let keeps = kept(&tap.run(Direction::In, &whole));
        ways[usize::from(keeps)] += 1;
        let part = |offset, more, payload: &[u8]| {
            let mut header = V4::new(A, B, UDP);
            (header.identification, header.offset, header.more) = (port + 1, offset, more);
            header.frame(payload)
        };
        let first = part(0, true, &udp(from, 53, &[0; 24]));
        let later = part(4, false, &[0; 8]);
        // Before its first, a later fragment is nobody's: kept.
        assert!(kept(&tap.run(Direction::In, &later)));
        assert_eq!(kept(&tap.run(Direction::In, &first)), keeps);
        assert_eq!(kept(&tap.run(Direction::In, &later)), keeps);

        let (a, b) = ("2001:db8::1", "2001:db8::2");
        let keeps = kept(&tap.run(
            Direction::In,
            &frame6(a, b, &[], UDP, &udp(from, 53, b"v6")),
        ));
        let fragment = |offset, more| [Extension::fragment(u32::from(port), offset, more)];
        let first = frame6(a, b, &fragment(0, true), UDP, &udp(from, 53, &[0; 8]));
        let later = frame6(a, b, &fragment(2, false), UDP, &[0; 8]);
        assert_eq!(kept(&tap.run(Direction::In, &first)), keeps);
        assert_eq!(kept(&tap.run(Direction::In, &later)), keeps);
    }
    assert!(ways[0] > 8 && ways[1] > 8, "{ways:?}");
}

#[test]
fn a_stream_is_cut_off_after_its_bytes() {
    require_root!();
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::with_needs(0, ALL));
    let there = V4::new(A, B, TCP).frame(&tcp(1000, 443, &LONG));
    let back = V4::new(B, A, TCP).frame(&tcp(443, 1000, &LONG));
    let other = V4::new(A, B, TCP).frame(&tcp(1001, 443, &LONG));
    // Three frames fit; the fourth crosses the limit and is copied.
    let limit = there.len() as u64 * 3 + 1;
    tap.rules(&[cut_off(limit)], None);
    steer.rules(&[cut_off(limit)], None);
    for frame in [&there, &back, &other] {
        for number in 0..8 {
            let seen = tap.run(Direction::Out, frame);
            assert_eq!(kept(&seen), number < 4, "frame {number}");
            assert_eq!(seen.dropped(Reason::Cutoff), u64::from(number >= 4));
            assert_eq!(seen.added.left_out[0], u64::from(number >= 4));
            let (output, added) = steer.run(frame);
            assert_eq!(dropped(&added, Reason::Cutoff), u64::from(number >= 4));
            assert_eq!(output.verdict, if number < 4 { XDP_PASS } else { XDP_DROP });
        }
    }
    // The other hook has a count of its own: what comes back in is another passage.
    assert!(kept(&tap.run(Direction::In, &there)));
    // A new connection on the same ports begins anew, in its own direction.
    let mut syn = tcp4(A, 1000, B, 443);
    syn[14 + 20 + 13] = 0x02;
    assert!(kept(&tap.run(Direction::Out, &syn)));
    for number in 0..5 {
        assert_eq!(kept(&tap.run(Direction::Out, &there)), number < 3);
        assert!(!kept(&tap.run(Direction::Out, &back)));
    }
}

#[test]
fn super_packets_and_fragments_count_by_their_bytes() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[cut_off(6000)], None);
    let frame = V4::new(A, B, TCP).frame(&tcp(1000, 443, &[0; 2800]));
    let context = Context {
        gso_size: 1400,
        gso_segs: 2,
        ..Context::default()
    };
    let captured: Vec<u64> = (0..4)
        .map(|_| {
            let seen = tap.run_with(Direction::Out, &frame, context);
            assert_eq!(seen.dropped(Reason::Cutoff) + seen.added.captured, 2);
            seen.added.captured
        })
        .collect();
    assert_eq!(captured, [2, 2, 2, 0]);

    // A datagram's fragments are of its flow.
    let mut header = V4::new(A, B, UDP);
    header.more = true;
    let first = header.frame(&udp(5, 6, &LONG));
    (header.more, header.offset) = (false, 176);
    let later = header.frame(&LONG);
    tap.rules(&[cut_off(2000)], None);
    let whole = udp4(A, 5, B, 6, &LONG);
    let ways: Vec<bool> = [&first, &later, &whole, &later]
        .map(|frame| kept(&tap.run(Direction::In, frame)))
        .to_vec();
    assert_eq!(ways, [true, true, false, false]);
}

#[test]
fn what_is_not_ip_has_no_stream() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[cut_off(1)], None);
    for _ in 0..3 {
        assert!(kept(
            &tap.run(Direction::In, &packets::ethernet(0x0806, &[0; 46]))
        ));
    }
}

#[test]
fn all_three_together_and_only_in_their_rule() {
    require_root!();
    let mut tap = TapBench::new();
    let rule = with(Slice {
        snaplen: 64,
        sample: Sample::new(1, 2),
        cutoff: Some(2000),
    });
    tap.rules(&[skip().port(9), rule.clone().protocol(17), mirror()], None);
    let mut ends = [0; 3];
    for port in 0..64u16 {
        let frame = udp4(A, 1000 + port, B, 53, &LONG);
        for _ in 0..3 {
            let seen = tap.run(Direction::In, &frame);
            let end = match (seen.dropped(Reason::Sampled), seen.dropped(Reason::Cutoff)) {
                (1, 0) => 0,
                (0, 1) => 1,
                _ => 2,
            };
            assert_eq!(seen.copy.is_some(), end == 2);
            assert_eq!(seen.added.left_out[1], u64::from(end != 2));
            ends[end] += 1;
        }
    }
    assert_eq!(ends[0] % 3, 0, "whole flows");
    assert_eq!(ends[2], ends[1] * 2, "two frames of each that is kept");
    assert!(ends[0] > 30 && ends[1] > 10, "{ends:?}");
    let seen = tap.run(Direction::In, &tcp4(A, 1, B, 2));
    assert_eq!(seen.copy.expect("whole").meta.snaplen, 0);
}
