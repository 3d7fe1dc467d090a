"""Compares the copies that a collector received with the originals, byte for byte.

The originals are captured at the far end of a veth, where TCP goes by in super-packets of up to 64 KB
with unfinished checksums. They are brought into the form of the wire first: checksums completed,
super-packets cut at the size that the connection used. Every packet must then be among the copies
exactly once, and no copy may be left over.
"""

import struct
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from packets import ETHERNET, TCP, UDP, Ipv4, cut, finished, tcp_payload


@dataclass
class Comparison:
    originals: int = 0  # frames as captured at the client's end
    super_packets: int = 0  # those of them larger than the MTU
    wire_packets: int = 0  # packets that they are on the wire
    copies: int = 0  # copies of this traffic that arrived
    bytes_compared: int = 0  # bytes of copies found equal
    reordered: int = 0  # copies that overtook another of their flow and direction
    problems: list = field(default_factory=list)


def flow_of(frame):
    """Identifies flow and direction: addresses and, where there are any, ports."""
    ip = Ipv4.of(frame)
    if ip is None:
        return frame[:ETHERNET]
    flow = bytes([ip.protocol]) + frame[ETHERNET + 12 : ETHERNET + 20]
    if not ip.fragment and ip.protocol in (TCP, UDP):
        flow += frame[ip.transport : ip.transport + 4]
    return flow


def both_directions(flow):
    """The same value for the two directions of a flow."""
    addresses, ports = flow[1:9], flow[9:13]
    ends = sorted([addresses[:4] + ports[:2], addresses[4:] + ports[2:]])
    return flow[:1] + ends[0] + ends[1]


def describe(frame):
    """A packet in a few words, for a person who looks for the error."""
    ip = Ipv4.of(frame)
    if ip is None:
        return f"ethertype {frame[12:14].hex()}, {len(frame)} bytes"
    source = ".".join(map(str, frame[ETHERNET + 12 : ETHERNET + 16]))
    destination = ".".join(map(str, frame[ETHERNET + 16 : ETHERNET + 20]))
    text = f"{source} > {destination} protocol {ip.protocol}, {len(frame)} bytes"
    if ip.protocol in (TCP, UDP) and not ip.fragment:
        text += ", ports {} > {}".format(*struct.unpack_from(">HH", frame, ip.transport))
    if ip.protocol == TCP and not ip.fragment:
        text += f", sequence {struct.unpack_from('>I', frame, ip.transport + 4)[0]}"
        text += f", flags {frame[ip.transport + 13]:02x}"
    return text


def sequence_of(frame):
    """(sequence number, payload length) of a TCP packet, None of any other."""
    ip = Ipv4.of(frame)
    if ip is None or ip.fragment or ip.protocol != TCP:
        return None
    return struct.unpack_from(">I", frame, ip.transport + 4)[0], ip.end - tcp_payload(frame, ip)


def segment_sizes(copies):
    """For each flow: payload size by sequence number, and the largest: how its super-packets were cut."""
    at, largest = {}, Counter()
    for copy in copies:
        tcp = sequence_of(copy.frame)
        if tcp and tcp[1]:
            flow = flow_of(copy.frame)
            at[flow, tcp[0]] = tcp[1]
            largest[flow] = max(largest[flow], tcp[1])
    return at, largest


def compare(originals, copies, mtu):
    """Compares frames captured at the client's end with `Copy` objects from the collector."""
    result = Comparison(originals=len(originals), copies=len(copies))
    size_at, largest = segment_sizes(copies)
    expected = []
    for frame in originals:
        if len(frame) <= ETHERNET + mtu:
            expected.append(finished(frame))
            continue
        result.super_packets += 1
        tcp = sequence_of(frame)
        if tcp is None:
            result.problems.append(f"an original is too large and not TCP: {describe(frame)}")
            continue
        flow = flow_of(frame)
        size = size_at.get((flow, tcp[0])) or largest.get(flow)
        if not size:
            result.problems.append(f"no copy at all of this flow: {describe(frame)}")
            continue
        expected.extend(cut(frame, size))
    result.wire_packets = len(expected)

    oversized = [copy for copy in copies if len(copy.frame) > ETHERNET + mtu]
    if oversized:
        result.problems.append(
            f"{len(oversized)} copies are larger than the MTU: {describe(oversized[0].frame)}"
        )

    wanted = Counter(expected)
    extra = Counter(copy.frame for copy in copies)
    result.bytes_compared = sum(len(frame) * number for frame, number in (wanted & extra).items())
    missing, extra = wanted - extra, extra - wanted
    if missing:
        result.problems.append(
            f"{sum(missing.values())} packets without an equal copy: {describe(next(iter(missing)))}"
        )
    if extra:
        result.problems.append(
            f"{sum(extra.values())} copies that equal no packet: {describe(next(iter(extra)))}"
        )
    first_difference(missing, extra, result.problems)
    result.reordered = count_reordered(expected, copies)
    check_source_ports(copies, result.problems)
    return result


def first_difference(missing, extra, problems):
    """Where a packet and a copy of the same flow, place and length first differ."""
    place = {(flow_of(frame), sequence_of(frame), len(frame)): frame for frame in extra}
    for frame in missing:
        copy = place.get((flow_of(frame), sequence_of(frame), len(frame)))
        if copy:
            at = next(i for i, (left, right) in enumerate(zip(frame, copy)) if left != right)
            problems.append(
                f"they differ first at byte {at}: {frame[at:at + 8].hex()} became {copy[at:at + 8].hex()}"
            )
            return


def count_reordered(expected, copies):
    """Copies that arrived before an earlier packet of their flow and direction."""
    order = defaultdict(list)
    for number, frame in enumerate(expected):
        order[frame].append(number)
    for places in order.values():
        places.reverse()
    last, reordered = {}, 0
    for copy in copies:
        if not order.get(copy.frame):
            continue
        number, flow = order[copy.frame].pop(), flow_of(copy.frame)
        if number < last.get(flow, -1):
            reordered += 1
        else:
            last[flow] = number
    return reordered


def check_source_ports(copies, problems):
    """Both directions of a flow have to leave by one outer source port, or a balancer parts them."""
    ports = defaultdict(set)
    for copy in copies:
        if copy.source_port is not None and Ipv4.of(copy.frame):
            ports[both_directions(flow_of(copy.frame))].add(copy.source_port)
    parted = [flow for flow, used in ports.items() if len(used) > 1]
    if parted:
        problems.append(f"{len(parted)} flows have more than one outer source port")
