//! Capture files that are whole, damaged, and none.

use std::io::Write as _;

use super::*;

fn pcap(link: u32, nanoseconds: bool, frames: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    let magic: u32 = if nanoseconds {
        0xa1b2_3c4d
    } else {
        0xa1b2_c3d4
    };
    let mut file = magic.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0]);
    for word in [0u32, 0, 65535, link] {
        file.extend(word.to_le_bytes());
    }
    for (seconds, part, bytes) in frames {
        let length = bytes.len() as u32;
        for word in [*seconds, *part, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(bytes);
    }
    file
}

fn frames() -> Vec<(u32, u32, Vec<u8>)> {
    (0..10)
        .map(|at| (1_700_000_000 + at, 7, vec![at as u8; 60 + at as usize]))
        .collect()
}

fn read_all(file: &[u8]) -> Result<(Outcome, Vec<(u64, usize)>), CaptureError> {
    let mut seen = Vec::new();
    let outcome = read(Cursor::new(file.to_vec()), &mut |frame: Frame<'_>| {
        seen.push((frame.time_ns, frame.bytes.len()));
    })?;
    Ok((outcome, seen))
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn pcapng() -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let length = 12 + body.len() as u32;
        let mut block = kind.to_le_bytes().to_vec();
        block.extend(length.to_le_bytes());
        block.extend(body);
        block.extend(length.to_le_bytes());
        block
    };
    let mut section = 0x1a2b_3c4du32.to_le_bytes().to_vec();
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    let mut file = block(0x0a0d_0d0a, &section);
    // Nanoseconds by if_tsresol 9.
    let interface = [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    file.extend(block(1, &interface));
    for at in 0..3u64 {
        let stamp = 1_700_000_000_000_000_007 + at;
        let mut packet = 0u32.to_le_bytes().to_vec();
        packet.extend(((stamp >> 32) as u32).to_le_bytes());
        packet.extend((stamp as u32).to_le_bytes());
        packet.extend(60u32.to_le_bytes());
        packet.extend(1500u32.to_le_bytes());
        packet.extend([0; 60]);
        file.extend(block(6, &packet));
    }
    file
}

#[test]
fn times_and_lengths_are_read() {
    let (outcome, seen) = read_all(&pcap(1, false, &frames())).unwrap();
    assert_eq!(outcome, Outcome::default());
    assert_eq!(seen.len(), 10);
    assert_eq!(seen[1], (1_700_000_001_000_007_000, 61));
    let (_, seen) = read_all(&pcap(1, true, &frames())).unwrap();
    assert_eq!(seen[1].0, 1_700_000_001_000_000_007);
    let (outcome, seen) = read_all(&pcapng()).unwrap();
    assert_eq!(outcome.damage, None);
    assert_eq!(seen[2], (1_700_000_000_000_000_009, 60));
}

#[test]
fn gzip_is_looked_through_also_in_members() {
    let file = pcap(1, false, &frames());
    let (_, plain) = read_all(&file).unwrap();
    let (outcome, seen) = read_all(&gzip(&file)).unwrap();
    assert_eq!((outcome.damage, &seen), (None, &plain));
    let mut members = gzip(&file[..100]);
    members.extend(gzip(&file[100..]));
    assert_eq!(read_all(&members).unwrap().1, plain);
    // Bytes that do not pack, in files below and above what is read at once.
    for count in [200u32, 2000] {
        let noise = |at: u32| {
            (0..100).map(move |byte| ((at * 100 + byte).wrapping_mul(0x9E37_79B1) >> 24) as u8)
        };
        let frames: Vec<_> = (0..count).map(|at| (at, 0, noise(at).collect())).collect();
        let whole = gzip(&pcap(1, false, &frames));
        let (outcome, seen) = read_all(&whole[..whole.len() / 10 * 9]).unwrap();
        assert!(outcome.damage.is_some(), "{count}");
        assert!(!seen.is_empty() && seen.len() < frames.len(), "{count}");
    }
}

#[test]
fn every_cut_is_named_and_what_came_before_is_read() {
    let file = pcap(1, false, &frames());
    let whole = |length: usize| {
        let mut at = 24;
        let mut count = 0;
        for (_, _, bytes) in frames() {
            at += 16 + bytes.len();
            count += usize::from(at <= length);
        }
        count
    };
    for length in 24..file.len() {
        let (outcome, seen) = read_all(&file[..length]).unwrap();
        assert_eq!(seen.len(), whole(length), "{length}");
        let on_boundary = length == 24 || {
            let (_, again) = read_all(&file[..length - 1]).unwrap();
            again.len() < seen.len()
        };
        assert_eq!(
            outcome.damage.is_none(),
            on_boundary,
            "{length}: {outcome:?}"
        );
    }
    let ng = pcapng();
    for length in 60..ng.len() {
        assert!(read_all(&ng[..length]).is_ok(), "{length}");
    }
}

#[test]
fn what_is_no_capture_is_refused() {
    for file in [
        &b""[..],
        b"x",
        b"#!/bin/sh\necho\n",
        &[0x1f, 0x8b, 8, 0],
        &gzip(b"text")[..],
    ] {
        assert!(read_all(file).is_err(), "{file:?}");
    }
}

#[test]
fn unknown_links_are_counted() {
    let (outcome, seen) = read_all(&pcap(147, false, &frames())).unwrap();
    assert_eq!(
        (outcome.unknown_links, outcome.unknown_link),
        (10, Some(147))
    );
    assert!(seen.is_empty());
}

#[test]
fn impossible_lengths_are_damage() {
    let mut file = pcap(1, false, &frames());
    file.extend([
        0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]);
    file.extend(vec![0; 100]);
    let (outcome, seen) = read_all(&file).unwrap();
    assert_eq!(seen.len(), 10);
    assert!(outcome.damage.is_some());
}
