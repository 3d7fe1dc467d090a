//! Random packets of every shape that segmentation understands.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Extension, IpSpec, Spec, TransportSpec, TunnelKind, TunnelSpec};

fn any_extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        3 => (0u8..3).prop_map(|units| Extension::Padding { kind: 60, units }),
        1 => any::<[u8; 16]>().prop_map(|last| Extension::Route { last }),
    ]
}

fn any_ip() -> impl Strategy<Value = IpSpec> {
    let v4 = (
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
        any::<u16>(),
        any::<bool>(),
        prop_oneof![3 => Just(0u8), 1 => 0u8..=10],
    )
        .prop_map(
            |(source, destination, identification, dont_fragment, options)| IpSpec::V4 {
                source,
                destination,
                identification,
                dont_fragment,
                options,
            },
        );
    let v6 = (
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        proptest::option::of(0u8..2),
        vec(any_extension(), 0..3),
    )
        .prop_map(|(source, destination, hop_by_hop, mut extensions)| {
            if let Some(units) = hop_by_hop {
                extensions.insert(0, Extension::Padding { kind: 0, units });
            }
            IpSpec::V6 {
                source,
                destination,
                extensions,
            }
        });
    prop_oneof![v4, v6]
}

fn any_tag() -> impl Strategy<Value = (u16, u16)> {
    (prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>())
}

fn any_tunnel() -> impl Strategy<Value = TunnelSpec> {
    let kind = prop_oneof![
        (prop_oneof![Just(4789u16), Just(8472)], any::<bool>())
            .prop_map(|(port, checksum)| TunnelKind::Vxlan { port, checksum }),
        (0u8..5, any::<bool>())
            .prop_map(|(options, checksum)| TunnelKind::Geneve { options, checksum }),
        (any::<bool>(), any::<bool>())
            .prop_map(|(key, checksum)| TunnelKind::Gre { key, checksum }),
        Just(TunnelKind::GreIp),
        Just(TunnelKind::IpInIp),
    ];
    (kind, any_ip(), proptest::option::of(any_tag())).prop_map(|(kind, outer, inner_tag)| {
        TunnelSpec {
            kind,
            outer,
            inner_tag,
        }
    })
}

fn any_transport() -> impl Strategy<Value = TransportSpec> {
    prop_oneof![
        3 => (any::<u32>(), any::<u8>(), any::<u16>(), 0u8..=10).prop_map(
            |(sequence, flags, urgent, options)| TransportSpec::Tcp {
                sequence,
                flags,
                urgent,
                options,
            },
        ),
        1 => any::<bool>().prop_map(|checksum| TransportSpec::Udp { checksum }),
    ]
}

/// A packet with a payload of up to `payload` bytes.
pub fn any_spec(payload: usize) -> impl Strategy<Value = Spec> {
    (
        vec(any_tag(), 0..3),
        proptest::option::weighted(0.4, any_tunnel()),
        any_ip(),
        any_transport(),
        any::<(u16, u16)>(),
        vec(any::<u8>(), 0..=payload),
    )
        .prop_map(|(tags, tunnel, ip, transport, mut ports, payload)| {
            // A tunnel's port would make the payload a tunnel.
            if [4789, 8472, 6081].contains(&ports.1) {
                ports.1 = 53;
            }
            Spec {
                tags,
                tunnel,
                ip,
                transport,
                ports,
                payload,
            }
        })
}
