//! Outer packets cut into fragments, put together by code of its own.

use etherparse::{Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice};
use proptest::prelude::*;

use super::super::super::testing::slow_sum;
use super::super::super::{PacketList, PacketRef};
use super::super::{fragment, NotCut, Pieces};
use super::pieces;

const ID: u32 = 0x0102_fefd;

fn outer4(length: usize) -> Vec<u8> {
    let total = (20 + 16 + length) as u16;
    let mut header = vec![0x45, 8, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend([203, 0, 113, 1, 203, 0, 113, 2]);
    header[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = !slow_sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(0u8..16);
    header
}

fn outer6(length: usize) -> Vec<u8> {
    let mut header = vec![0x60, 1, 2, 3, 0, 0, 17, 64];
    header[4..6].copy_from_slice(&((16 + length) as u16).to_be_bytes());
    header.extend([0x20; 16]);
    header.extend([0x30; 16]);
    header.extend(0u8..16);
    header
}

fn step4(
    batch: PacketList<'_>,
    packet: &PacketRef,
    frame: &[u8],
    limit: usize,
    out: &mut Pieces,
) -> Result<u32, NotCut> {
    fragment(&outer4(frame.len()), batch, packet, frame, limit, ID, out)
}

fn step6(
    batch: PacketList<'_>,
    packet: &PacketRef,
    frame: &[u8],
    limit: usize,
    out: &mut Pieces,
) -> Result<u32, NotCut> {
    fragment(&outer6(frame.len()), batch, packet, frame, limit, ID, out)
}

/// What follows the IPv4 header of the datagram that was cut.
fn reassemble4(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, bytes) in fragments.iter().enumerate() {
        let header = Ipv4HeaderSlice::from_slice(bytes).unwrap();
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
        assert_eq!(usize::from(header.total_len()), bytes.len());
        assert_eq!(u32::from(header.identification()), ID & 0xffff);
        assert!(!header.dont_fragment());
        assert_eq!(header.more_fragments(), index + 1 < fragments.len());
        assert_eq!(
            usize::from(header.fragments_offset().value()) * 8,
            body.len()
        );
        assert_eq!(
            (header.ttl(), header.protocol().0, header.dcp().value()),
            (64, 17, 2)
        );
        body.extend(&bytes[20..]);
    }
    body
}

fn reassemble6(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, bytes) in fragments.iter().enumerate() {
        let header = Ipv6HeaderSlice::from_slice(bytes).unwrap();
        assert_eq!(usize::from(header.payload_length()), bytes.len() - 40);
        assert_eq!(header.next_header().0, 44);
        let header = Ipv6FragmentHeaderSlice::from_slice(&bytes[40..]).unwrap();
        assert_eq!(header.identification(), ID);
        assert_eq!(header.next_header().0, 17);
        assert_eq!(header.more_fragments(), index + 1 < fragments.len());
        assert_eq!(
            usize::from(header.fragment_offset().value()) * 8,
            body.len()
        );
        body.extend(&bytes[48..]);
    }
    body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn fragments_are_the_datagram(
        inner in prop::collection::vec(any::<u8>(), 1..9000),
        head in 0usize..500,
        mtu in prop_oneof![Just(552usize), 552usize..1600],
    ) {
        let body = [&(0u8..16).collect::<Vec<_>>(), inner.as_slice()].concat();
        let made = pieces(&inner, head, mtu, step4).unwrap();
        prop_assert_eq!(reassemble4(&made), body.clone());
        let mtu = mtu.max(1280);
        let made = pieces(&inner, head, mtu, step6).unwrap();
        prop_assert_eq!(reassemble6(&made), body);
    }
}

#[test]
fn fragments_are_even() {
    let made = pieces(&[7; 1514], 0, 1500, step4).unwrap();
    let lengths: Vec<_> = made.iter().map(Vec::len).collect();
    // 1530 bytes behind the IP header: 768 (a multiple of 8) and the rest.
    assert_eq!(lengths, [20 + 768, 20 + 762]);
}

#[test]
fn what_cannot_be_fragmented_is_told() {
    let whole = vec![0; 1514];
    // Longer than any datagram, and in more pieces than a receiver would put up with.
    assert_eq!(
        pieces(&vec![0; 65530], 0, 1500, step4),
        Err(NotCut::Unsuitable)
    );
    assert_eq!(pieces(&whole, 0, 27, step4), Err(NotCut::Unsuitable));
    assert_eq!(pieces(&[0; 9000], 0, 36, step4), Err(NotCut::Unsuitable));
    let options: super::Step = |batch, packet, frame, limit, out| {
        let mut outer = outer4(frame.len());
        outer[0] = 0x46;
        fragment(&outer, batch, packet, frame, limit, ID, out)
    };
    assert_eq!(pieces(&whole, 0, 1500, options), Err(NotCut::Unsuitable));
}
