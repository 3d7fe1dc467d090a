//! TCP payload cut into packets that fit.

use proptest::prelude::*;

use super::super::super::testing::{any_spec, slow_sum, Spec, TransportSpec};
use super::super::{resegment, NotCut};
use super::{built, pieces, tcp, v4};

const LENGTHS: [usize; 4] = [0, 14, 54, 66];

/// What must be on the wire, from the description alone.
fn expected(spec: &Spec, start: usize, size: usize) -> Spec {
    let mut piece = spec.clone();
    let end = spec.payload.len().min(start + size);
    piece.payload = spec.payload[start..end].to_vec();
    if let TransportSpec::Tcp {
        sequence,
        flags,
        urgent,
        ..
    } = &mut piece.transport
    {
        *sequence = sequence.wrapping_add(start as u32);
        if start > 0 {
            *flags &= !0x80;
            if *flags & 0x20 != 0 {
                *urgent = urgent.saturating_sub(start as u16);
                if *urgent == 0 {
                    *flags &= !0x20;
                }
            }
        }
        if end < spec.payload.len() {
            *flags &= !0x09;
        }
    }
    piece
}

/// 0 and 0xffff are the same number.
fn same_zero(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    if bytes[at..at + 2] == [0xff; 2] {
        bytes[at..at + 2].fill(0);
    }
    bytes
}

fn any_tcp() -> impl Strategy<Value = Spec> {
    any_spec(4000).prop_filter("TCP without a tunnel", |spec| {
        spec.tunnel.is_none() && matches!(spec.transport, TransportSpec::Tcp { .. })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_global_rejects: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn pieces_are_what_a_smaller_mss_had_sent(
        spec in any_tcp(),
        more_tags in 0usize..4,
        room in 40usize..1500,
        head in prop::sample::select(&LENGTHS[..]),
    ) {
        let mut spec = spec;
        spec.tags.extend(std::iter::repeat_n((0x8100, 5), more_tags));
        let built = built(&spec);
        let limit = built.payload + room;
        let made = pieces(&built.bytes, head.min(built.payload), limit, resegment);
        if built.bytes.len() <= limit {
            prop_assert_eq!(made, Err(NotCut::Unsuitable));
            return Ok(());
        }
        let made = made.unwrap();
        let count = spec.payload.len().div_ceil(room);
        let size = spec.payload.len().div_ceil(count);
        prop_assert_eq!(made.len(), count);
        let at = built.transport + 16;
        for (index, piece) in made.into_iter().enumerate() {
            let wanted = expected(&spec, index * size, size).build().bytes;
            prop_assert_eq!(same_zero(piece, at), same_zero(wanted, at));
        }
    }

    #[test]
    fn a_wrong_checksum_is_as_wrong_in_every_piece(
        spec in any_tcp(),
        room in 40usize..1500,
        error: u16,
        at_payload: prop::sample::Index,
        flip: u8,
    ) {
        prop_assume!(!spec.payload.is_empty());
        let mut built = built(&spec);
        let field = built.transport + 16;
        let value = u16::from_be_bytes([built.bytes[field], built.bytes[field + 1]]);
        built.bytes[field..field + 2].copy_from_slice(&value.wrapping_add(error).to_be_bytes());
        let place = built.payload + at_payload.index(spec.payload.len());
        built.bytes[place] ^= flip;
        let wrong = |packet: &[u8]| {
            let segment = &packet[built.transport..];
            let pseudo = spec.ip.pseudo(6, segment.len());
            let sum = u32::from(pseudo) + u32::from(slow_sum(segment));
            // 0 and 0xffff are the same number.
            sum % 0xffff
        };
        let limit = built.payload + room;
        prop_assume!(built.bytes.len() > limit);
        let error = wrong(&built.bytes);
        for piece in pieces(&built.bytes, 0, limit, resegment).unwrap() {
            prop_assert_eq!(wrong(&piece), error);
        }
    }
}

#[test]
fn pieces_are_even_so_that_runs_stay_long() {
    let frame = tcp(v4(), 0, 0, 1448).build().bytes;
    // VXLAN over a path of 1500 bytes has room for frames of 1450.
    let made = pieces(&frame, 0, 1450, resegment).unwrap();
    let lengths: Vec<_> = made.iter().map(Vec::len).collect();
    assert_eq!(lengths, [66 + 724, 66 + 724]);
    let jumbo = tcp(v4(), 0, 0, 8949).build().bytes;
    let made = pieces(&jumbo, 0, 1450, resegment).unwrap();
    assert_eq!(made.len(), 7);
    assert!(made.iter().all(|piece| piece.len() >= 66 + 1275));
}

#[test]
fn a_wrong_header_checksum_stays_as_wrong() {
    let mut frame = tcp(v4(), 0, 0, 1000).build().bytes;
    frame[24] ^= 0x5a;
    let error = slow_sum(&frame[14..34]);
    assert_ne!(error, 0xffff);
    for piece in pieces(&frame, 0, 700, resegment).unwrap() {
        assert_eq!(slow_sum(&piece[14..34]), error);
    }
}

#[test]
fn what_a_switch_appended_goes_along_with_the_last_piece() {
    let spec = tcp(v4(), 0, 0, 1000);
    let mut frame = spec.build().bytes;
    frame.extend([0xee; 12]);
    let made = pieces(&frame, 0, 700, resegment).unwrap();
    assert_eq!(made.len(), 2);
    assert_eq!(made[0], expected(&spec, 0, 500).build().bytes);
    let last = expected(&spec, 500, 500).build().bytes;
    assert_eq!(made[1], [last.as_slice(), &[0xee; 12]].concat());
    // More of it than that is something else.
    frame.extend([0xee; 100]);
    assert_eq!(pieces(&frame, 0, 700, resegment), Err(NotCut::Unsuitable));
}

#[test]
fn what_cannot_be_cut_is_told() {
    let good = tcp(v4(), 0x18, 0, 1000).build();
    assert_eq!(pieces(&good.bytes, 0, 700, resegment).unwrap().len(), 2);
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.bytes.clone();
        change(&mut frame);
        assert_eq!(pieces(&frame, 0, 700, resegment), Err(NotCut::Unsuitable));
    };
    refused(&|frame| frame[47] |= 0x02); // SYN
    refused(&|frame| frame[47] |= 0x04); // RST
    refused(&|frame| frame[20] |= 0x20); // a first fragment
    refused(&|frame| frame[21] = 1); // a later one
    refused(&|frame| frame[23] = 17); // UDP
    refused(&|frame| frame[23] = 51); // IPsec authentication
    refused(&|frame| frame.truncate(900)); // truncated
    refused(&|frame| frame.truncate(40));
    refused(&|frame| frame[16..18].fill(0)); // no length
    refused(&|frame| frame[46] = 0x40); // a TCP header of 16 bytes
    refused(&|frame| frame[12] = 0x99); // no IP
    let none = tcp(v4(), 0, 0, 0).build().bytes;
    assert_eq!(pieces(&none, 0, 60, resegment), Err(NotCut::Unsuitable));
    // Headers alone are longer than the path allows.
    assert_eq!(
        pieces(&good.bytes, 0, 66, resegment),
        Err(NotCut::Unsuitable)
    );
}

#[test]
fn an_authentication_header_is_not_cut() {
    use super::super::super::testing::{Extension, IpSpec};
    let ip = IpSpec::V6 {
        source: [1; 16],
        destination: [2; 16],
        extensions: vec![Extension::Padding { kind: 60, units: 0 }],
    };
    let mut frame = tcp(ip, 0, 0, 1000).build().bytes;
    assert_eq!(pieces(&frame, 0, 700, resegment).unwrap().len(), 2);
    // Its length is counted in units of 4 bytes, less 2: 0 is 8 bytes as well.
    frame[20] = 51;
    assert_eq!(pieces(&frame, 0, 700, resegment), Err(NotCut::Unsuitable));
}
