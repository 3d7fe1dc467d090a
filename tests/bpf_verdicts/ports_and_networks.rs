//! Rules that ask for ports and networks, of either end or of one.

use xtee::mirror::rules::Rule;

use crate::packets::{ethernet, tcp4, tcp6, udp, udp4, UDP, V4};
use crate::require_root;
use crate::table::{check, copied, dns, skipped, v4, v6};
use crate::{mirror, net, skip, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const A6: &str = "2001:db8::1";
const B6: &str = "2001:db8::2";

#[test]
fn ports_and_networks() {
    require_root!();
    let source_port = |port: u16| Rule {
        source_ports: vec![port..=port],
        ..mirror()
    };
    let to_port = |port: u16| Rule {
        destination_ports: vec![port..=port],
        ..mirror()
    };
    let range = || Rule {
        ports: vec![8000..=8100, 9000..=9000],
        ..mirror()
    };
    let source = |network: &str| Rule {
        source: vec![net(network)],
        ..mirror()
    };
    let destination = |network: &str| Rule {
        destination: vec![net(network)],
        ..mirror()
    };
    let nested = || {
        vec![
            skip().network("198.51.100.2/32"),
            mirror().network("198.51.100.0/24"),
        ]
    };
    check(vec![
        copied(
            "either port, as source",
            vec![mirror().port(443)],
            tcp4(A, 443, B, 2),
            0,
        ),
        copied(
            "either port, as destination",
            vec![mirror().port(443)],
            tcp4(A, 1, B, 443),
            0,
        ),
        skipped(
            "neither port",
            vec![mirror().port(443)],
            tcp4(A, 442, B, 444),
            None,
        ),
        copied("source port", vec![source_port(443)], tcp4(A, 443, B, 2), 0),
        skipped(
            "not the source port",
            vec![source_port(443)],
            tcp4(A, 1, B, 443),
            None,
        ),
        copied(
            "destination port",
            vec![to_port(443)],
            tcp4(A, 1, B, 443),
            0,
        ),
        skipped(
            "not the destination port",
            vec![to_port(443)],
            tcp4(A, 443, B, 1),
            None,
        ),
        copied(
            "first of a range",
            vec![range()],
            udp4(A, 1, B, 8000, b""),
            0,
        ),
        copied(
            "last of a range",
            vec![range()],
            udp4(A, 8100, B, 1, b""),
            0,
        ),
        skipped(
            "behind a range",
            vec![range()],
            udp4(A, 8101, B, 7999, b""),
            None,
        ),
        copied("second range", vec![range()], udp4(A, 1, B, 9000, b""), 0),
        copied("port 0", vec![mirror().port(0)], udp4(A, 0, B, 9, b""), 0),
        copied(
            "port 65535",
            vec![mirror().port(65535)],
            udp4(A, 1, B, 65535, b""),
            0,
        ),
        copied(
            "port of SCTP",
            vec![mirror().port(2)],
            v4(132, &udp(1, 2, b"")),
            0,
        ),
        skipped(
            "ICMP has no port",
            vec![mirror().port(0)],
            v4(1, &[0; 8]),
            None,
        ),
        skipped(
            "GRE has no port",
            vec![mirror().port(0)],
            v4(47, &[0; 8]),
            None,
        ),
        copied(
            "IPv4 options before the port",
            vec![mirror().port(53)],
            {
                V4 {
                    options: 10,
                    ..V4::new(A, B, UDP)
                }
                .frame(&dns())
            },
            0,
        ),
        copied(
            "IPv6 port",
            vec![mirror().port(53)],
            v6(&[], UDP, &dns()),
            0,
        ),
        copied(
            "network, as source",
            vec![mirror().network("198.51.100.1/32")],
            tcp4(A, 1, B, 2),
            0,
        ),
        copied(
            "network, as destination",
            vec![mirror().network("198.51.100.2/31")],
            tcp4(A, 1, B, 2),
            0,
        ),
        copied(
            "source network",
            vec![source("198.51.100.1")],
            tcp4(A, 1, B, 2),
            0,
        ),
        skipped(
            "not the source",
            vec![source("198.51.100.2")],
            tcp4(A, 1, B, 2),
            None,
        ),
        copied(
            "destination network",
            vec![destination("198.51.100.2")],
            tcp4(A, 1, B, 2),
            0,
        ),
        skipped(
            "not the destination",
            vec![destination("198.51.100.1")],
            tcp4(A, 1, B, 2),
            None,
        ),
        skipped("the narrow network first", nested(), tcp4(A, 1, B, 2), 0),
        copied(
            "the wide network",
            nested(),
            tcp4(A, 1, "198.51.100.3", 2),
            1,
        ),
        copied(
            "all of IPv4",
            vec![mirror().network("0.0.0.0/0")],
            tcp4(A, 1, B, 2),
            0,
        ),
        skipped(
            "all of IPv4, an IPv6 packet",
            vec![mirror().network("0.0.0.0/0")],
            tcp6(A6, 1, B6, 2),
            None,
        ),
        copied(
            "all of IPv6",
            vec![mirror().network("::/0")],
            tcp6(A6, 1, B6, 2),
            0,
        ),
        copied(
            "IPv6 /33",
            vec![mirror().network("2001:db8::/33")],
            tcp6(A6, 1, "2001:db8:8000::1", 2),
            0,
        ),
        skipped(
            "IPv6 /33, beyond",
            vec![mirror().network("2001:db8:8000::/33")],
            tcp6(A6, 1, B6, 2),
            None,
        ),
        copied(
            "IPv6 host",
            vec![mirror().network("2001:db8::2/128")],
            tcp6(A6, 1, B6, 2),
            0,
        ),
        skipped(
            "ARP is in no network",
            vec![mirror().network("0.0.0.0/0")],
            ethernet(0x0806, &[0; 28]),
            None,
        ),
    ]);
}

#[test]
fn the_sixty_fourth_rule() {
    require_root!();
    let mut rules = vec![skip().protocol(200); 63];
    rules.push(mirror().protocol(6).port(443).network("198.51.100.0/24"));
    check(vec![
        copied("rule 63", rules.clone(), tcp4(A, 1, B, 443), 63),
        skipped("none of 64", rules, tcp4(A, 1, B, 80), None),
    ]);
}
