//! Pieces against packets built from scratch, put together again, and each rule by itself.

mod any_bytes;
mod fragments;
mod segments;

use super::super::testing::{Built, IpSpec, Spec, TransportSpec};
use super::super::{cut, FrameMeta, PacketList, PacketRef, Packets, Part};
use super::{NotCut, Pieces};

fn v4() -> IpSpec {
    IpSpec::V4 {
        source: [198, 51, 100, 1],
        destination: [203, 0, 113, 9],
        identification: 0xfffe,
        dont_fragment: true,
        options: 0,
    }
}

fn tcp(ip: IpSpec, flags: u8, urgent: u16, payload: usize) -> Spec {
    Spec {
        tags: Vec::new(),
        tunnel: None,
        ip,
        transport: TransportSpec::Tcp {
            sequence: 0xffff_fff0,
            flags,
            urgent,
            options: 3,
        },
        ports: (40000, 443),
        payload: (0..payload).map(|at| (at * 7) as u8).collect(),
    }
}

/// A frame as a batch of one packet, `head` bytes of it in the arena.
fn batch(frame: &[u8], head: usize) -> (Vec<u8>, PacketRef) {
    let head = head.min(frame.len());
    let packet = PacketRef {
        frame: 5,
        head: (3, head as u16),
        tail: (head as u32, (frame.len() - head) as u32),
        flow_hash: 77,
        part: Part::Whole,
    };
    ([&[0xaa; 3], &frame[..head]].concat(), packet)
}

type Step = fn(PacketList<'_>, &PacketRef, &[u8], usize, &mut Pieces) -> Result<u32, NotCut>;

/// The pieces that a step makes of a frame, put together.
fn pieces(frame: &[u8], head: usize, limit: usize, step: Step) -> Result<Vec<Vec<u8>>, NotCut> {
    let (arena, packet) = batch(frame, head);
    let refs = [packet];
    let batch = PacketList::new(&arena, &refs);
    let mut out = Pieces::default();
    let count = step(batch, &packet, frame, limit, &mut out)? as usize;
    let list = out.list(batch);
    assert_eq!(list.len(), count);
    assert_eq!(list.copies(), 1);
    let last = count - 1;
    let made: Vec<_> = list
        .refs()
        .iter()
        .enumerate()
        .map(|(index, piece)| {
            assert_eq!((piece.frame, piece.flow_hash), (5, 77));
            let part = if index == last {
                Part::Last
            } else {
                Part::More
            };
            assert_eq!(piece.part, part);
            let bytes = [list.head_bytes(piece), piece.tail_bytes(frame)].concat();
            assert_eq!(bytes.len(), piece.length());
            assert!(bytes.len() <= limit, "{} of {limit}", bytes.len());
            bytes
        })
        .collect();
    Ok(made)
}

#[test]
fn what_fits_and_pieces_stand_in_one_list() {
    let frame = tcp(v4(), 0, 0, 1000).build().bytes;
    let mut packets = Packets::default();
    for _ in 0..2 {
        cut(
            &FrameMeta::plain(frame.len() as u32),
            &frame,
            0,
            &mut packets,
        )
        .unwrap();
    }
    let batch = packets.list();
    let mut out = Pieces::default();
    out.pass(batch.refs()[0]).unwrap();
    super::resegment(batch, &batch.refs()[1], &frame, 700, &mut out).unwrap();
    let list = out.list(batch);
    assert_eq!((list.len(), list.copies()), (3, 2));
    let mut whole = vec![0; frame.len()];
    assert_eq!(
        list.write(&list.refs()[0], &frame, &mut whole),
        Some(frame.len())
    );
    assert_eq!(whole, frame);
    assert!(list.head_bytes(&list.refs()[1]).starts_with(&frame[..14]));
}

#[test]
fn full_is_told_and_changes_nothing() {
    let frame = tcp(v4(), 0, 0, 1000).build().bytes;
    let (arena, packet) = batch(&frame, 0);
    let refs = [packet];
    let batch = PacketList::new(&arena, &refs);
    let mut out = Pieces::new(5, 1 << 16);
    super::resegment(batch, &packet, &frame, 500, &mut out).unwrap();
    let before = out.list(batch).len();
    assert_eq!(before, 3);
    let again = super::resegment(batch, &packet, &frame, 500, &mut out);
    assert_eq!(again, Err(NotCut::NoRoom));
    assert_eq!(out.list(batch).len(), before);
    out.clear();
    assert_eq!(
        super::resegment(batch, &packet, &frame, 500, &mut out),
        Ok(3)
    );
    // What never fits is no reason to ask again.
    let mut small = Pieces::new(2, 1 << 16);
    let never = super::resegment(batch, &packet, &frame, 500, &mut small);
    assert_eq!(never, Err(NotCut::Unsuitable));
}

#[test]
fn the_end_is_cut_off_and_the_lengths_stay() {
    let frame = tcp(v4(), 0, 0, 1000).build().bytes;
    for head in [0, 20, 60, 500] {
        let (arena, packet) = batch(&frame, head);
        for limit in [0, 10, 60, 400, 5000] {
            let cut = super::truncate(&packet, limit);
            let refs = [cut];
            let list = PacketList::new(&arena, &refs);
            let bytes = [list.head_bytes(&cut), cut.tail_bytes(&frame)].concat();
            assert_eq!(bytes, frame[..limit.min(frame.len())]);
        }
    }
}

fn built(spec: &Spec) -> Built {
    spec.build()
}
