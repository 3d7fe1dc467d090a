"""The demo's judge is judged here: it must accept right copies and name each kind of wrong one."""

import struct
import unittest

import compare
import mirror
from packets import (
    ETHERNET,
    FIN,
    PSH,
    TCP,
    Copy,
    Ipv4,
    Malformed,
    cut,
    finished,
    from_gre,
    from_vxlan,
    ones_complement_sum,
    pseudo_header,
    with_ip_checksum,
    with_transport_checksum,
)

MACS = bytes.fromhex("0200000000020200000000010800")


def ipv4(protocol, body, source=(198, 51, 100, 1), destination=(198, 51, 100, 2), fragment=0x4000):
    header = struct.pack(
        ">BBHHHBBH4B4B", 0x45, 0, 20 + len(body), 0xFFFE, fragment, 64, protocol, 0, *source, *destination
    )
    frame = MACS + header + body
    return with_ip_checksum(frame, Ipv4.of(frame))


def tcp(sequence, payload, flags=0x10, unfinished=False):
    frame = ipv4(TCP, struct.pack(">HHIIBBHHH", 40000, 80, sequence, 1, 0x50, flags, 1024, 0, 0) + payload)
    ip = Ipv4.of(frame)
    if unfinished:
        return (
            frame[: ip.transport + 16]
            + struct.pack(">H", ones_complement_sum(pseudo_header(frame, ip)))
            + frame[ip.transport + 18 :]
        )
    return with_transport_checksum(frame, ip)


def copies(frames, port=61007):
    return [Copy(frame, port) for frame in frames]


def checksum_holds(frame):
    ip = Ipv4.of(frame)
    return ones_complement_sum(pseudo_header(frame, ip) + frame[ip.transport : ip.end]) == 0xFFFF


class Cutting(unittest.TestCase):
    def test_an_unfinished_checksum_is_completed_and_a_wrong_one_is_kept(self):
        self.assertEqual(finished(tcp(7, b"abc", unfinished=True)), tcp(7, b"abc"))
        wrong = bytearray(tcp(7, b"abc"))
        wrong[-1] ^= 1
        self.assertEqual(finished(bytes(wrong)), bytes(wrong))

    def test_a_super_packet_becomes_what_the_wire_carries(self):
        payload = bytes(range(256)) * 12
        packets = cut(tcp(0xFFFFFF00, payload, 0x10 | FIN | PSH, unfinished=True), 1000)
        self.assertEqual([len(packet) for packet in packets], [1054, 1054, 1054, 126])
        self.assertEqual(b"".join(packet[54:] for packet in packets), payload)
        self.assertEqual(
            [compare.sequence_of(packet)[0] for packet in packets], [0xFFFFFF00, 0x2E8, 0x6D0, 0xAB8]
        )
        self.assertEqual(
            [packet[ETHERNET + 4 : ETHERNET + 6].hex() for packet in packets],
            ["fffe", "ffff", "0000", "0001"],
        )
        self.assertEqual([packet[47] for packet in packets], [0x10, 0x10, 0x10, 0x10 | FIN | PSH])
        for packet in packets:
            self.assertTrue(checksum_holds(packet))
            self.assertEqual(ones_complement_sum(packet[ETHERNET:34]), 0xFFFF)


class Comparing(unittest.TestCase):
    def setUp(self):
        self.originals = [
            tcp(1, b"GET /", unfinished=True),
            tcp(6, bytes(4000), unfinished=True),
            ipv4(1, bytes(64)),
        ]
        self.right = [tcp(1, b"GET /"), *cut(self.originals[1], 1460), ipv4(1, bytes(64))]

    def compare(self, frames):
        return compare.compare(self.originals, copies(frames), 1500)

    def test_right_copies(self):
        result = self.compare(self.right)
        self.assertEqual(result.problems, [])
        self.assertEqual(
            (result.originals, result.super_packets, result.wire_packets, result.copies, result.reordered),
            (3, 1, 5, 5, 0),
        )
        self.assertEqual(result.bytes_compared, sum(map(len, self.right)))

    def test_a_missing_a_doubled_and_a_changed_copy_are_found(self):
        for number in range(len(self.right)):
            rest = self.right[:number] + self.right[number + 1 :]
            self.assertIn("1 packets without an equal copy", self.compare(rest).problems[0])
            self.assertIn(
                "1 copies that equal no packet", self.compare(self.right + [self.right[number]]).problems[0]
            )
            changed = bytearray(self.right[number])
            changed[-1] ^= 0x40
            problems = self.compare(rest + [bytes(changed)]).problems
            self.assertEqual(len([p for p in problems if "differ first at byte" in p]), 1, problems)

    def test_an_uncut_super_packet_is_found(self):
        self.assertTrue(
            any(
                "larger than the MTU" in problem
                for problem in self.compare(
                    [self.right[0], finished(self.originals[1]), self.right[-1]]
                ).problems
            )
        )

    def test_order_is_judged_within_a_flow_only(self):
        last = self.right[-1]
        self.assertEqual(self.compare([last] + self.right[:-1]).reordered, 0)
        swapped = [self.right[0], self.right[2], self.right[1], *self.right[3:]]
        self.assertEqual(self.compare(swapped).reordered, 1)

    def test_one_flow_with_two_source_ports_is_found(self):
        mixed = copies(self.right)
        mixed[0].source_port += 1
        self.assertIn(
            "more than one outer source port", compare.compare(self.originals, mixed, 1500).problems[0]
        )


class Tunnels(unittest.TestCase):
    def vxlan(self, header="0800000000000700", port=61000, fragment=0, length=None):
        inner = tcp(1, b"x")
        length = length or 16 + len(inner)
        return ipv4(
            17, struct.pack(">HHHH", port, 4789, length, 0) + bytes.fromhex(header) + inner, fragment=fragment
        )

    def test_vxlan(self):
        copy = from_vxlan(self.vxlan(), 7)
        self.assertEqual((copy.frame, copy.source_port), (tcp(1, b"x"), 61000))
        for wrong in (
            self.vxlan(header="0800000000000800"),
            self.vxlan(header="0800000100000700"),
            self.vxlan(header="0800000000000701"),
            self.vxlan(header="ff00000000000700"),
            self.vxlan(port=40000),
            self.vxlan(fragment=0x2000),
            self.vxlan(length=20),
        ):
            with self.assertRaises(Malformed):
                from_vxlan(wrong, 7)

    def test_gre(self):
        inner = tcp(1, b"x")
        self.assertEqual(from_gre(ipv4(47, bytes.fromhex("2000655800000007") + inner), 7).frame, inner)
        self.assertEqual(
            from_gre(ipv4(47, bytes.fromhex("300065580000000700000001") + inner), 7).frame, inner
        )
        for wrong in ("2000655800000008", "2001655800000007", "2000080000000007"):
            with self.assertRaises(Malformed):
                from_gre(ipv4(47, bytes.fromhex(wrong) + inner), 7)


class Balances(unittest.TestCase):
    def status(self, **changes):
        source = {
            "name": "tap:eth0",
            "seen": 10,
            "unmatched": 2,
            "matched": 8,
            "captured": 7,
            "dropped": {"ring": 1},
        }
        target = {
            "url": "vxlan://203.0.113.2",
            "offered": 7,
            "sent_packets": 6,
            "dropped": {"oversize": 1},
            "in_flight": 0,
        }
        for name, value in changes.items():
            (source if name in source else target)[name] = value
        return {"sources": [source], "targets": [target]}

    def test_it_holds_exactly_or_not(self):
        balance = mirror.Balance(self.status())
        self.assertEqual((balance.problems, balance.dropped), ([], {"ring": 1, "oversize": 1}))
        for change in (
            {"seen": 11},
            {"unmatched": 1},
            {"captured": 8},
            {"offered": 8},
            {"sent_packets": 7},
            {"in_flight": 1},
        ):
            self.assertTrue(mirror.Balance(self.status(**change)).problems, change)


if __name__ == "__main__":
    unittest.main()
