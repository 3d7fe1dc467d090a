//! Our copies behind any header are found; everything else is not.

use proptest::prelude::*;

use super::super::encap::{erspan, Inner, Marking, OuterAddresses, OuterFields, OuterTemplate};
use super::super::testing::{any_spec, ethernet};
use super::*;

const US: [u8; 4] = [198, 51, 100, 1];
const COLLECTOR: [u8; 4] = [203, 0, 113, 2];
const US6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const COLLECTOR6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn holds_own_copy(frame: &[u8], flows: &[OwnFlow]) -> bool {
    find(frame, flows) == Own::Copy
}

fn flow(tunnel: Tunnel) -> OwnFlow {
    OwnFlow::new(US.into(), COLLECTOR.into(), tunnel, 61000..=61063).unwrap()
}

fn flow6(tunnel: Tunnel) -> OwnFlow {
    OwnFlow::new(US6.into(), COLLECTOR6.into(), tunnel, 61000..=61063).unwrap()
}

fn vxlan() -> Tunnel {
    Tunnel::Vxlan { vni: 7, port: 4789 }
}

fn gre() -> Tunnel {
    Tunnel::Gre {
        key: Some(9),
        sequence: true,
        inner: Inner::Ethernet,
    }
}

fn every_tunnel() -> [Tunnel; 6] {
    let erspan = |version| Tunnel::Erspan {
        version,
        session: 9,
    };
    [
        vxlan(),
        Tunnel::Geneve { vni: 7, port: 6081 },
        gre(),
        Tunnel::Gre {
            key: None,
            sequence: false,
            inner: Inner::Ip,
        },
        erspan(erspan::Version::Two),
        erspan(erspan::Version::Three),
    ]
}

/// One of our copies as an IP packet.
fn copy_between(source: IpAddr, destination: IpAddr, tunnel: Tunnel, port: u16) -> Vec<u8> {
    let addresses = OuterAddresses {
        source_mac: [2; 6],
        destination_mac: [4; 6],
        source,
        destination,
    };
    let template = OuterTemplate::new(&addresses, Marking::default(), tunnel).unwrap();
    let fields = OuterFields {
        source_port: port,
        ethertype: 0x86dd,
        tci: Some(0xe123),
        sequence: 0x5555_5555,
        timestamp: 0x6666_6666,
        ..OuterFields::default()
    };
    let mut frame = vec![0; template.overhead()];
    template.write(&mut frame, 60, &fields).unwrap();
    frame.extend([0x11; 60]);
    frame.split_off(14)
}

fn copy(tunnel: Tunnel, source_port: u16) -> Vec<u8> {
    copy_between(US.into(), COLLECTOR.into(), tunnel, source_port)
}

fn copy6(tunnel: Tunnel, source_port: u16) -> Vec<u8> {
    copy_between(US6.into(), COLLECTOR6.into(), tunnel, source_port)
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend([0x20; 32]);
    packet.extend(payload);
    packet
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    packet.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    packet.extend(payload);
    packet
}

/// A relay's UDP packet with `relay` bytes before the copy.
fn relayed(relay: usize, copy: &[u8]) -> Vec<u8> {
    let payload = [&vec![0x5a; relay], copy].concat();
    let mut datagram = vec![0x12, 0x34, 0x56, 0x78];
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    ethernet(&[], 0x0800, &ipv4(17, &datagram))
}

#[test]
fn found_behind_any_relay_header() {
    for tunnel in every_tunnel() {
        let mut flows: Vec<_> = every_tunnel().map(flow6).into();
        flows.extend(every_tunnel().map(flow));
        let copies = [copy(tunnel, 61005), copy6(tunnel, 61005)];
        // 14 Ethernet, 20 IPv4, 8 UDP: the copy must begin before byte 192.
        for copy in copies {
            for relay in 0..150 {
                assert!(holds_own_copy(&relayed(relay, &copy), &flows), "{relay}");
            }
            assert!(!holds_own_copy(&relayed(150, &copy), &flows));
        }
    }
}

#[test]
fn found_behind_ip_headers_of_every_kind() {
    let flows = [flow(vxlan())];
    let copy = copy(vxlan(), 61000);
    let in_ipv4 = ethernet(&[(0x8100, 3)], 0x0800, &ipv4(4, &copy));
    assert!(holds_own_copy(&in_ipv4, &flows));
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, copy.len() as u8, 4, 64];
    ipv6.extend([0x20; 32]);
    ipv6.extend(&copy);
    assert!(holds_own_copy(&ethernet(&[], 0x86dd, &ipv6), &flows));
    // PPPoE is not IP; its payload is.
    let pppoe = [&[0x11, 0, 0, 1, 0, 200, 0, 0x21], copy.as_slice()].concat();
    assert!(holds_own_copy(&ethernet(&[], 0x8864, &pppoe), &flows));
}

#[test]
fn the_outermost_header_is_the_loop_guards() {
    let frame = ethernet(&[], 0x0800, &copy(vxlan(), 61000));
    assert!(!holds_own_copy(&frame, &[flow(vxlan())]));
}

#[test]
fn other_traffic_between_the_same_hosts_is_not_ours() {
    let flows = [flow(vxlan())];
    let ours = copy(vxlan(), 61063);
    assert!(holds_own_copy(&relayed(4, &ours), &flows));
    assert!(!holds_own_copy(&relayed(4, &copy(vxlan(), 61064)), &flows));
    assert!(!holds_own_copy(&relayed(4, &copy(gre(), 0)), &flows));
    let changed = |at: usize, value| {
        let mut copy = ours.clone();
        copy[at] = value;
        holds_own_copy(&relayed(4, &copy), &flows)
    };
    assert!(!changed(9, 6), "protocol");
    assert!(!changed(0, 0x65), "version");
    assert!(!changed(12, 1), "source");
    assert!(!changed(16, 1), "destination");
    assert!(!changed(22, 0), "destination port");
    assert!(!changed(28, 0), "VXLAN flags");
    assert!(!changed(34, 8), "VNI");

    let other_key = Tunnel::Gre {
        key: Some(8),
        sequence: true,
        inner: Inner::Ethernet,
    };
    assert!(!holds_own_copy(
        &relayed(4, &copy(gre(), 0)),
        &[flow(other_key)]
    ));
    assert!(!holds_own_copy(&relayed(4, &ours), &[]));
}

#[test]
fn the_addresses_may_stand_there_twice() {
    let decoy = [US, COLLECTOR].concat();
    let bytes = [decoy.as_slice(), &decoy, &copy(vxlan(), 61000)].concat();
    assert!(holds_own_copy(&relayed(12, &bytes), &[flow(vxlan())]));
}

fn quotation_of(kind: u8, tunnel: Tunnel, quoted: usize) -> Vec<u8> {
    let mut error = vec![kind, 3, 0, 0, 0, 0, 0, 0];
    error.extend(&copy(tunnel, 61000)[..quoted]);
    error
}

fn quotation(kind: u8) -> Vec<u8> {
    quotation_of(kind, vxlan(), 48)
}

#[test]
fn an_error_that_quotes_us_is_not_a_copy() {
    let flows = [flow(vxlan())];
    for kind in [3, 4, 5, 11, 12] {
        let frame = ethernet(&[], 0x0800, &ipv4(1, &quotation(kind)));
        assert_eq!(find(&frame, &flows), Own::Quoted, "{kind}");
    }
    // An echo with our copy in it quotes nobody: something sends our copies around.
    let echo = ethernet(&[], 0x0800, &ipv4(1, &quotation(8)));
    assert!(holds_own_copy(&echo, &flows));

    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 56, 58, 64];
    ipv6.extend([0x20; 32]);
    ipv6.extend(quotation(1));
    assert_eq!(find(&ethernet(&[], 0x86dd, &ipv6), &flows), Own::Quoted);
}

#[test]
fn a_short_quotation_is_known_by_what_is_there() {
    let flows = [flow(vxlan()), flow(gre())];
    for tunnel in [vxlan(), gre()] {
        // RFC 792: the IP header and 8 bytes of its payload at least.
        for quoted in 28..48 {
            let error = ipv4(1, &quotation_of(3, tunnel, quoted));
            let found = find(&ethernet(&[], 0x0800, &error), &flows);
            assert_eq!(found, Own::Quoted, "{tunnel:?} {quoted}");
        }
    }
    for tunnel in every_tunnel() {
        for quoted in 48..68 {
            let mut error = vec![1, 4, 0, 0, 0, 0, 0, 0];
            error.extend(&copy6(tunnel, 61000)[..quoted]);
            let frame = ethernet(&[], 0x86dd, &ipv6(58, &error));
            let found = find(&frame, &[flow6(tunnel)]);
            assert_eq!(found, Own::Quoted, "{tunnel:?} {quoted}");
            // To somebody who asks with an echo instead, it is no quotation.
            error[0] = 128;
            let whole = [&error[..8], &copy6(tunnel, 61000)].concat();
            let frame = ethernet(&[], 0x86dd, &ipv6(58, &whole));
            assert!(holds_own_copy(&frame, &[flow6(tunnel)]));
        }
    }
    // Somebody else's VXLAN, from a port that is not ours, and another VNI.
    for (at, value) in [(21, 0), (34, 8)] {
        let mut message = quotation(3);
        message[8 + at] = value;
        let frame = ethernet(&[], 0x0800, &ipv4(1, &message));
        assert_eq!(find(&frame, &flows), Own::Nothing, "{at}");
    }
}

/// The tunnel's other end is gone: the error quotes the relay's packet, with our copy inside.
#[test]
fn an_error_about_the_relay_quotes_us_too() {
    let relayed = relayed(4, &copy(vxlan(), 61000));
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(&relayed[14..]);
    let frame = ethernet(&[], 0x0800, &ipv4(1, &message));
    assert_eq!(find(&frame, &[flow(vxlan())]), Own::Quoted);
}

/// The sensor's answer comes back through the same tunnel as the copies go.
#[test]
fn a_tunnelled_error_that_quotes_us_is_not_a_copy() {
    let mut answer = ipv4(1, &quotation(3));
    answer[12..16].copy_from_slice(&COLLECTOR);
    answer[16..20].copy_from_slice(&US);
    assert_eq!(find(&relayed(4, &answer), &[flow(vxlan())]), Own::Quoted);
}

/// The same over IPv6, as a relay brings it back.
#[test]
fn a_tunnelled_icmpv6_error_that_quotes_us_is_not_a_copy() {
    let mut answer = ipv6(
        58,
        &[&[1, 4, 0, 0, 0, 0, 0, 0][..], &copy6(vxlan(), 61000)].concat(),
    );
    answer[24..40].copy_from_slice(&US6);
    let flows = [flow6(vxlan())];
    assert_eq!(find(&relayed(4, &answer), &flows), Own::Quoted);
    // To somebody else: our copy is on its way inside his packets.
    answer[39] = 9;
    assert_eq!(find(&relayed(4, &answer), &flows), Own::Copy);
}

/// Of a copy in pieces the first is known, IPv6's by what follows the fragment header.
#[test]
fn the_first_piece_of_a_fragmented_copy_is_found() {
    let mut piece = copy(vxlan(), 61000);
    piece[6] = 0x20;
    assert!(holds_own_copy(&relayed(4, &piece), &[flow(vxlan())]));
    let mut piece = copy6(vxlan(), 61000);
    piece.splice(40..40, [17, 0, 0, 1, 0, 0, 0, 9]);
    piece[6] = 44;
    assert!(holds_own_copy(&relayed(4, &piece), &[flow6(vxlan())]));
}

#[test]
fn a_flow_of_two_ip_versions_cannot_be() {
    assert_eq!(
        OwnFlow::new(US.into(), COLLECTOR6.into(), vxlan(), 1..=1),
        None
    );
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(
        spec in any_spec(100),
        keep: prop::sample::Index,
        place: prop::sample::Index,
    ) {
        let mut frame = spec.build().bytes;
        let flows: Vec<_> = every_tunnel().map(flow).into_iter().chain(every_tunnel().map(flow6)).collect();
        prop_assert!(!holds_own_copy(&frame, &flows));
        let at = place.index(frame.len());
        let bytes = if frame.len() % 2 == 0 { copy(vxlan(), 61000) } else { copy6(gre(), 61000) };
        frame.splice(at..at, bytes);
        frame.truncate(keep.index(frame.len() + 1));
        let _ = holds_own_copy(&frame, &flows);
    }
}
