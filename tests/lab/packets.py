"""Packets of the lab's captures: pcap files, tunnels, checksums, and how a super-packet is cut.

Slow and obvious on purpose: xtee's copies are judged by this, so it shares nothing with xtee. It knows
what the lab sends (Ethernet, IPv4, TCP, UDP, ICMP) and treats anything else as opaque bytes.
"""

import struct
from dataclasses import dataclass

ETHERNET = 14
TCP, UDP, GRE = 6, 17, 47
FIN, PSH, CWR = 0x01, 0x08, 0x80
VXLAN_PORT = 4789
# xtee's outer source ports: above Linux's ephemeral range.
SOURCE_PORTS = range(61000, 65536)


class Malformed(Exception):
    """A packet is not what it has to be; the text says in what."""


def read_pcap(path):
    """The frames of a pcap file (Ethernet, not cut short), in order."""
    data = path.read_bytes()
    orders = {
        b"\xd4\xc3\xb2\xa1": "<",
        b"\x4d\x3c\xb2\xa1": "<",
        b"\xa1\xb2\xc3\xd4": ">",
        b"\xa1\xb2\x3c\x4d": ">",
    }
    order = orders.get(data[:4])
    if order is None:
        raise Malformed(f"{path} is no pcap file")
    if struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF != 1:
        raise Malformed(f"{path} does not hold Ethernet frames")
    frames, at = [], 24
    while at < len(data):
        captured, length = struct.unpack_from(order + "II", data, at + 8)
        if captured != length:
            raise Malformed(f"{path}: a frame of {length} bytes was captured with {captured} only")
        frames.append(data[at + 16 : at + 16 + captured])
        at += 16 + captured
    return frames


def ones_complement_sum(data):
    """The folded 16-bit one's complement sum of RFC 1071, not inverted."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass
class Ipv4:
    """Where the parts of an IPv4 frame lie; offsets are in bytes from the start of the frame."""

    protocol: int
    transport: int
    end: int
    fragment: bool

    @staticmethod
    def of(frame):
        """None unless the frame is IPv4."""
        if len(frame) < ETHERNET + 20 or frame[12:14] != b"\x08\x00" or frame[ETHERNET] >> 4 != 4:
            return None
        header = (frame[ETHERNET] & 15) * 4
        total, _, fragment = struct.unpack_from(">HHH", frame, ETHERNET + 2)
        if header < 20 or total < header or ETHERNET + total > len(frame):
            raise Malformed("the IPv4 lengths do not fit the frame")
        return Ipv4(frame[ETHERNET + 9], ETHERNET + header, ETHERNET + total, fragment & 0x3FFF != 0)


def pseudo_header(frame, ip):
    return frame[ETHERNET + 12 : ETHERNET + 20] + struct.pack(">BBH", 0, ip.protocol, ip.end - ip.transport)


def with_ip_checksum(frame, ip):
    """The frame with its IPv4 header checksum computed anew."""
    bare = frame[ETHERNET : ETHERNET + 10] + b"\0\0" + frame[ETHERNET + 12 : ip.transport]
    checksum = 0xFFFF - ones_complement_sum(bare)
    return frame[: ETHERNET + 10] + struct.pack(">H", checksum) + frame[ETHERNET + 12 :]


def with_transport_checksum(frame, ip):
    """The frame with its TCP or UDP checksum computed anew."""
    field = ip.transport + (16 if ip.protocol == TCP else 6)
    bare = frame[:field] + b"\0\0" + frame[field + 2 :]
    checksum = 0xFFFF - ones_complement_sum(pseudo_header(bare, ip) + bare[ip.transport : ip.end])
    if ip.protocol == UDP and checksum == 0:
        checksum = 0xFFFF
    return frame[:field] + struct.pack(">H", checksum) + frame[field + 2 :]


def finished(frame):
    """The frame as a wire would carry it: an unfinished checksum of local traffic is completed.

    The kernel leaves the folded sum of the pseudo-header in the field for the device to complete; any
    other value stays as it is, right or wrong.
    """
    ip = Ipv4.of(frame)
    if ip is None or ip.fragment or ip.protocol not in (TCP, UDP):
        return frame
    field = ip.transport + (16 if ip.protocol == TCP else 6)
    if struct.unpack_from(">H", frame, field)[0] != ones_complement_sum(pseudo_header(frame, ip)):
        return frame
    return with_transport_checksum(frame, ip)


def tcp_payload(frame, ip):
    """Offset of the TCP payload in the frame."""
    return ip.transport + (frame[ip.transport + 12] >> 4) * 4


def cut(frame, size):
    """A TCP super-packet as the packets of at most `size` payload bytes that go over the wire.

    IP ID counts up, FIN and PSH stand on the last packet only, CWR on the first only (the kernel's
    tcp_gso_segment, and what NICs do).
    """
    ip = Ipv4.of(frame)
    start = tcp_payload(frame, ip)
    (identification,) = struct.unpack_from(">H", frame, ETHERNET + 4)
    (sequence,) = struct.unpack_from(">I", frame, ip.transport + 4)
    flags = frame[ip.transport + 13]
    packets = []
    for number, offset in enumerate(range(start, ip.end, size)):
        payload = frame[offset : min(offset + size, ip.end)]
        header = bytearray(frame[:start])
        struct.pack_into(">H", header, ETHERNET + 2, start - ETHERNET + len(payload))
        struct.pack_into(">H", header, ETHERNET + 4, (identification + number) & 0xFFFF)
        struct.pack_into(">I", header, ip.transport + 4, (sequence + offset - start) & 0xFFFFFFFF)
        own_flags = flags
        if offset + size < ip.end:
            own_flags &= ~(FIN | PSH)
        if number > 0:
            own_flags &= ~CWR
        header[ip.transport + 13] = own_flags & 0xFF
        packet = bytes(header) + payload
        packets.append(with_transport_checksum(with_ip_checksum(packet, Ipv4.of(packet)), Ipv4.of(packet)))
    return packets


@dataclass
class Copy:
    """What came out of the tunnel, and the outer source port it came by (None for GRE)."""

    frame: bytes
    source_port: object


def outer(frame, protocol):
    """Checks the outer IPv4 header of a copy and returns its layout."""
    ip = Ipv4.of(frame)
    if ip is None or ip.protocol != protocol:
        raise Malformed("a copy's outer header is not IPv4 with the tunnel's protocol")
    if ip.fragment:
        raise Malformed("a copy's outer packet is an IP fragment")
    if ones_complement_sum(frame[ETHERNET : ip.transport]) != 0xFFFF:
        raise Malformed("a copy's outer IPv4 checksum is wrong")
    return ip


def from_vxlan(frame, vni):
    """The copy inside a VXLAN frame (RFC 7348); strict, as sensors are."""
    ip = outer(frame, UDP)
    frame = finished(frame)  # a veth leaves the completion to a wire that never comes
    source, destination, length, checksum = struct.unpack_from(">HHHH", frame, ip.transport)
    if destination != VXLAN_PORT or length != ip.end - ip.transport or length < 16:
        raise Malformed("a copy's UDP header is not VXLAN's, or a super-packet came unsplit")
    if source not in SOURCE_PORTS:
        raise Malformed(f"a copy's outer source port {source} is outside 61000-65535")
    if checksum and ones_complement_sum(pseudo_header(frame, ip) + frame[ip.transport : ip.end]) != 0xFFFF:
        raise Malformed("a copy's outer UDP checksum is wrong")
    header = frame[ip.transport + 8 : ip.transport + 16]
    if header != struct.pack(">II", 0x08000000, vni << 8):
        raise Malformed(f"VXLAN header {header.hex()} instead of flags 08, VNI {vni}, reserved bits 0")
    return Copy(frame[ip.transport + 16 : ip.end], source)


def from_gre(frame, key):
    """The copy inside a GRE frame (RFC 2784, 2890): key, perhaps a sequence number, Ethernet inside."""
    ip = outer(frame, GRE)
    flags, protocol = struct.unpack_from(">HH", frame, ip.transport)
    if flags not in (0x2000, 0x3000) or protocol != 0x6558:
        raise Malformed(f"GRE flags {flags:04x}, protocol {protocol:04x} instead of a key and 6558")
    (own_key,) = struct.unpack_from(">I", frame, ip.transport + 4)
    if own_key != key:
        raise Malformed(f"GRE key {own_key} instead of {key}")
    return Copy(frame[ip.transport + (12 if flags & 0x1000 else 8) : ip.end], None)
