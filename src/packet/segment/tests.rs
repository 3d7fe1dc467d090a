//! Segmentation against packets built from scratch, and each rule by itself.

mod any_bytes;
mod ordinary;
mod special;
mod super_packets;

use super::super::testing::{Built, IpSpec, Spec, TransportSpec};
use super::super::{cut, Checksum, CutError, FrameMeta, Packets};

fn v4() -> IpSpec {
    IpSpec::V4 {
        source: [198, 51, 100, 1],
        destination: [203, 0, 113, 9],
        identification: 0xfffe,
        dont_fragment: true,
        options: 0,
    }
}

fn tcp(ip: IpSpec, payload: &[u8]) -> Spec {
    Spec {
        tags: Vec::new(),
        tunnel: None,
        ip,
        transport: TransportSpec::Tcp {
            sequence: 1,
            flags: 0,
            urgent: 0,
            options: 3,
        },
        ports: (40000, 443),
        payload: payload.to_vec(),
    }
}

/// Metadata of an unfinished frame.
fn unfinished(spec: &Spec, built: &Built) -> Checksum {
    Checksum::Unfinished {
        start: built.transport as u16,
        offset: spec.checksum_offset() as u16,
    }
}

/// Cuts a frame into an empty batch and puts the packets together.
fn cut_all(meta: &FrameMeta, frame: &[u8]) -> Result<Vec<Vec<u8>>, CutError> {
    let mut out = Packets::default();
    let count = cut(meta, frame, 3, &mut out)?;
    assert_eq!(count as usize, out.len());
    Ok(out
        .refs()
        .iter()
        .map(|packet| {
            assert_eq!(packet.frame, 3);
            assert_eq!(packet.flow_hash, meta.flow_hash);
            let bytes = [out.head_bytes(packet), packet.tail_bytes(frame)].concat();
            assert_eq!(bytes.len(), packet.length());
            let mut written = vec![0; bytes.len()];
            assert_eq!(out.write(packet, frame, &mut written), Some(bytes.len()));
            assert_eq!(written, bytes);
            bytes
        })
        .collect())
}
