#!/usr/bin/env python3
"""The demo: an instance is mirrored to a collector, first from a live interface, then from a mirror port.

    XTEE=target/release/xtee tests/lab/demo.py

Needs root. Everything happens in network namespaces that are gone at the end. Exit code 0 only if every
copy equals its original, the sensor alerts and finds nothing broken, and xtee's balance holds.
"""

import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import mirror
import throughput
from compare import compare
from lab import Lab, LabError, wait_until
from packets import Ipv4, Malformed, from_gre, from_vxlan, read_pcap
from sensor import REQUEST_MARKER, REQUEST_RULE, RESPONSE_MARKER, RESPONSE_RULE, Sensor, faults

CLIENT, INSTANCE = "198.51.100.1", "198.51.100.2"
PRODUCTION_MTU, MIRROR_MTU = 1500, 1600
FILE_BYTES = 4 << 20
# What is compared: everything the demo sends on purpose. ARP is mirrored too, but comes when it likes.
COMPARED = "tcp port 80 or udp port 53 or icmp"

started = time.monotonic()


def say(text=""):
    print(text, flush=True)


def step(number, text):
    say(f"[{time.monotonic() - started:3.0f}s] {number}. {text}")


@dataclass
class Part:
    """What one part of the demo found; the table at the end has one column a part."""

    title: str
    comparison: object = None
    alerts: int = 0
    sensor_packets: int = 0
    sensor_faults: dict = field(default_factory=dict)
    production: object = None
    balance: object = None
    problems: list = field(default_factory=list)


class Hosts:
    """The lab's hosts and the cables between them."""

    def __init__(self, lab):
        self.client, self.instance, self.collector = (
            lab.namespace(name) for name in ("client", "instance", "collector")
        )
        lab.link(
            (self.client, "eth0", f"{CLIENT}/24"), (self.instance, "eth0", f"{INSTANCE}/24"), PRODUCTION_MTU
        )
        lab.link(
            (self.instance, "mirror0", "203.0.113.1/30"),
            (self.collector, "mirror0", "203.0.113.2/30"),
            MIRROR_MTU,
        )
        # A veth takes UDP super-packets and hands them on unsplit: the sensor would see one datagram of
        # 64 KB. Without this offload the kernel splits before the device, as it does before most cloud NICs,
        # and the wire carries single packets.
        self.instance.run("ethtool", "-K", "mirror0", "tx-udp-segmentation", "off")
        self.serve(lab)

    def serve(self, lab):
        """The instance's services: a web server and a name server."""
        self.file = lab.directory / "www" / f"{REQUEST_MARKER}.bin"
        self.file.parent.mkdir()
        self.file.write_bytes(RESPONSE_MARKER.encode() + random.Random(7).randbytes(FILE_BYTES))
        web = self.instance.start(
            "web", sys.executable, Path(__file__).with_name("web.py"), INSTANCE, 80, self.file.parent
        )
        names = self.instance.start(
            "dnsmasq",
            "dnsmasq",
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file",
            f"--listen-address={INSTANCE}",
            "--bind-interfaces",
            f"--address=/www.xtee.example/{INSTANCE}",
            f"--txt-record=big.xtee.example,{'x' * 250},{'y' * 250}",
        )
        web.wait_for_output("serving")
        names.wait_for_output("started")

    def use_services(self, directory):
        """What the client does: a download, an upload, name look-ups, pings. Checks that it works."""
        download = directory / "download"
        address = f"http://{INSTANCE}/{self.file.name}"
        self.client.run("curl", "-sSf", "--max-time", "20", "-o", download, address)
        if download.read_bytes() != self.file.read_bytes():
            raise LabError("production is harmed: the downloaded file differs")
        self.client.run("curl", "-sSf", "--max-time", "20", "-T", self.file, f"http://{INSTANCE}/upload")
        answer = self.client.run(
            "dig", "+short", "+time=2", "+tries=1", f"@{INSTANCE}", "www.xtee.example"
        ).strip()
        if answer != INSTANCE:
            raise LabError(f"production is harmed: the name server answered {answer!r}")
        self.client.run("dig", "+short", "+time=2", "+tries=1", f"@{INSTANCE}", "big.xtee.example", "TXT")
        for size in (56, PRODUCTION_MTU - 28):
            self.client.run("ping", "-q", "-c", "5", "-i", "0.05", "-W", "2", "-s", size, INSTANCE)

    def make_mirror_port(self, lab):
        """An appliance with a SPAN port that gets all of the instance's packets, and its cable to the collector."""
        self.appliance = lab.namespace("appliance")
        lab.link((self.instance, "switch0", None), (self.appliance, "span0", None), PRODUCTION_MTU)
        lab.link(
            (self.appliance, "mirror0", "203.0.113.5/30"),
            (self.collector, "mirror1", "203.0.113.6/30"),
            MIRROR_MTU,
        )
        # A switch's port carries finished checksums and single packets. Segmentation offload goes with it.
        self.instance.run("ethtool", "-K", "switch0", "tx", "off")
        # The switch: both directions of the instance's interface are copied to the port.
        self.instance.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        for direction in ("ingress", "egress"):
            self.instance.run(
                "tc",
                "filter",
                "add",
                "dev",
                "eth0",
                direction,
                "protocol",
                "all",
                "u32",
                "match",
                "u32",
                "0",
                "0",
                "action",
                "mirred",
                "egress",
                "mirror",
                "dev",
                "switch0",
            )


class Capture:
    """tcpdump on one interface, from its construction until `frames`."""

    def __init__(self, namespace, interface, expression):
        self.path = namespace.lab.directory / f"{namespace.name}-{interface}.pcap"
        # -Z root: it would write as a user that may not write in the lab's directory.
        self.process = namespace.start(
            f"tcpdump-{interface}",
            "tcpdump",
            "-Z",
            "root",
            "-n",
            "-i",
            interface,
            "-B",
            "65536",
            "-w",
            self.path,
            expression,
        )
        self.process.wait_for_output("listening on")

    def frames(self):
        self.process.stop()
        if "\n0 packets dropped by kernel" not in self.process.output():
            raise LabError(
                f"a capture of the lab lost packets, so nothing can be compared:\n{self.process.output()}"
            )
        return read_pcap(self.path)


def mirror_and_compare(lab, hosts, part, namespace, arguments, sensor_interface, tunnel, decapsulate):
    """Runs xtee while the client uses the services; compares, and asks sensor and balance."""
    step(2, f"Suricata reads {sensor_interface} of the collector")
    sensor = Sensor(lab, hosts.collector, sensor_interface)

    # From before the first copy until after the last: what arrives is then exactly what xtee sent.
    originals = Capture(hosts.client, "eth0", COMPARED)
    copies = Capture(hosts.collector, sensor_interface, tunnel)

    step(3, "xtee mirror " + " ".join(arguments))
    xtee = mirror.Xtee(lab, namespace, arguments)
    say(indent(xtee.plan()))

    megabytes = FILE_BYTES >> 20
    step(
        4, f"HTTP down and up ({megabytes} MiB each), DNS, ping; captured at the client and at the collector"
    )
    hosts.use_services(lab.directory)
    status = xtee.quiet_status()
    # tcpdump gets a block of the kernel's ring when it is full or a second old; ended earlier, it loses it.
    time.sleep(1.3)
    originals = originals.frames()
    received = [decapsulate(frame) for frame in copies.frames()]
    compared = [copy for copy in received if (ip := Ipv4.of(copy.frame)) and is_compared(copy.frame, ip)]
    part.comparison = compare(originals, compared, PRODUCTION_MTU)
    part.problems += part.comparison.problems
    if not part.comparison.super_packets:
        part.problems.append(
            "no super-packet among the originals: the demo has not shown that they are split"
        )

    step(5, "the sensor's alerts on the copies")
    try:
        wait_until(
            lambda: {REQUEST_RULE, RESPONSE_RULE}
            <= {alert["alert"]["signature_id"] for alert in sensor.alerts()},
            15,
            "both alerts",
        )
    except LabError:
        part.problems.append("Suricata did not raise both alerts on the copies")
    part.alerts = len(sensor.alerts())
    for alert in sensor.alerts():
        ends = "{src_ip}:{src_port} > {dest_ip}:{dest_port}".format(**alert)
        tunnel_ends = "{src_ip} > {dest_ip}".format(**alert["tunnel"])
        say(f"       ALERT {alert['alert']['signature']}: {ends} (inside {tunnel_ends})")
    stats = sensor.stop()
    part.sensor_packets = stats["decoder"]["gre" if "proto" in tunnel else "vxlan"]
    part.sensor_faults = faults(stats)
    if stats["capture"]["kernel_drops"]:
        part.problems.append(f"Suricata lost {stats['capture']['kernel_drops']} packets before it read them")
    if part.sensor_faults:
        part.problems.append(f"Suricata found broken packets: {part.sensor_faults}")
    if part.sensor_packets != len(received):
        part.problems.append(
            f"Suricata decapsulated {part.sensor_packets} copies, {len(received)} were captured"
        )

    balance = xtee.stop()
    part.balance = mirror.Balance(status)
    part.problems += part.balance.problems
    if part.balance.dropped:
        part.problems.append(f"copies were dropped in a quiet lab: {part.balance.dropped}")
    if part.balance.sent != len(received):
        part.problems.append(f"xtee sent {part.balance.sent} copies, {len(received)} arrived")
    step(6, "xtee's own balance, printed when it ended")
    say(indent(balance))


def is_compared(frame, ip):
    """The same choice as the capture filter COMPARED."""
    if ip.protocol == 1:
        return True
    if ip.fragment or ip.protocol not in (6, 17):
        return False
    ports = {int.from_bytes(frame[ip.transport + at : ip.transport + at + 2], "big") for at in (0, 2)}
    return (80 if ip.protocol == 6 else 53) in ports


def indent(text):
    return "\n".join(f"       {line}" for line in text.strip().splitlines())


def tap_part(lab, hosts):
    say("Part one: a live interface (tap), copies in VXLAN")
    step(1, f"hosts: client {CLIENT} <-> {INSTANCE} instance 203.0.113.1 -> 203.0.113.2 collector")
    part = Part("tap, VXLAN")
    arguments = ["tap:eth0", "--to", "vxlan://203.0.113.2?vni=7&limit=none"]
    mirror_and_compare(
        lab,
        hosts,
        part,
        hosts.instance,
        arguments,
        "mirror0",
        "udp dst port 4789",
        lambda frame: from_vxlan(frame, 7),
    )
    step(
        7,
        f"iperf3 both ways, {throughput.ROUNDS} rounds of {throughput.SECONDS} s without and with the mirror"
        " (all hosts share this machine: production on its first CPU, the mirror on another)",
    )
    # The collector's device takes the copies and drops them: its stack is not what is measured here.
    hosts.collector.run("nft", "add", "table", "netdev", "sink")
    hosts.collector.run("nft", "add chain netdev sink in { type filter hook ingress device mirror0 priority 0; }")
    hosts.collector.run("nft", "add", "rule", "netdev", "sink", "in", "udp", "dport", "4789", "drop")
    pinned = (*arguments, "--cpus", str(os.cpu_count() - 1))
    part.production = throughput.measure(
        hosts.client, hosts.instance, INSTANCE, lambda: mirror.Xtee(lab, hosts.instance, pinned)
    )
    hosts.collector.run("nft", "delete", "table", "netdev", "sink")
    for line in part.production.lines():
        say(f"       {line}")
    part.problems += part.production.problems
    return part


def span_part(lab, hosts):
    say("Part two: an appliance's mirror port (span), by XDP and AF_XDP, copies in GRE")
    part = Part("span, GRE")
    hosts.make_mirror_port(lab)
    step(
        1,
        "hosts: the instance's switch copies to span0 of the appliance 203.0.113.5 -> 203.0.113.6 collector",
    )
    mirror_and_compare(
        lab,
        hosts,
        part,
        hosts.appliance,
        ["span:span0", "--to", "gre://203.0.113.6?key=7&limit=none"],
        "mirror1",
        "ip proto 47",
        lambda frame: from_gre(frame, 7),
    )
    return part


def table(parts):
    rows = [("", [part.title for part in parts])]

    def row(name, value):
        rows.append((name, [value(part) for part in parts]))

    row("original frames at the client", lambda p: p.comparison.originals)
    row("  super-packets among them", lambda p: p.comparison.super_packets)
    row("  packets they are on the wire", lambda p: p.comparison.wire_packets)
    row("copies of them at the collector", lambda p: p.comparison.copies)
    row("bytes compared and equal", lambda p: p.comparison.bytes_compared)
    row("  in another order (CPUs, veth)", lambda p: p.comparison.reordered)
    row("Suricata: copies decapsulated", lambda p: p.sensor_packets)
    row("Suricata: alerts", lambda p: p.alerts)
    row("Suricata: invalid or truncated", lambda p: sum(p.sensor_faults.values()))
    row("xtee: seen", lambda p: p.balance.seen)
    row("xtee: unmatched", lambda p: p.balance.unmatched)
    row("xtee: sent", lambda p: p.balance.sent)
    row("xtee: dropped", lambda p: sum(p.balance.dropped.values()))
    row("xtee: balance", lambda p: "does not hold" if p.balance.problems else "holds")
    for index, name in enumerate(("production out", "production in")):
        row(name, lambda p, index=index: p.production.summary()[index] if p.production else "")
    for name, values in rows:
        say(f"  {name:<32}" + "".join(f"{value:>26}" for value in values))


def main():
    binary = os.environ.get("XTEE", "")
    if not os.access(binary, os.X_OK):
        sys.exit(f"demo: error: XTEE={binary!r} is no program; make demo sets it to the release binary")
    if os.geteuid() != 0:
        sys.exit("demo: error: not root; it makes network namespaces")
    parts = []
    try:
        with Lab() as lab:
            hosts = Hosts(lab)
            parts.append(tap_part(lab, hosts))
            say()
            parts.append(span_part(lab, hosts))
    except (LabError, Malformed) as error:
        sys.exit(f"demo: FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; everything it made is removed")
    say()
    table(parts)
    say()
    problems = [f"{part.title}: {problem}" for part in parts for problem in part.problems]
    if problems:
        sys.exit("\n  ".join(["demo: FAILED:", *problems]))
    seconds = time.monotonic() - started
    say(f"demo: every copy equals its original, the sensor alerts, the balance holds ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
