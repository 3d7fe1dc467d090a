"""The benchmark's lab: client, instance and collector, and the ways to mirror that are compared.

Production is client - instance (MTU 1500), the mirror path instance - collector (MTU 1600). Production runs
on CPU 0, the mirror's poller on CPU 1. Two collectors: "veth", a host on this machine that drops what arrives
(its receive path, about a quarter of the poller's CPU, runs on the sender's core), and "ifb", a device that
drops what it is given, as a NIC would take it off the CPU's hands.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lab"))

from lab import Lab, run, wait_until  # noqa: E402
from mirror import Balance, Xtee  # noqa: E402

PRODUCTION_CPU, POLLER_CPU = 0, 1
CLIENT, INSTANCE = "198.51.100.1", "198.51.100.2"
MIRROR, COLLECTOR = "203.0.113.1", "203.0.113.2"
OFFLOADS = ("tx-udp_tnl-segmentation", "tx-udp-segmentation")


class Bench:
    """The three hosts, made in a lab."""

    def __init__(self, lab: Lab, sink):
        self.lab = lab
        self.client, self.instance, self.collector = (lab.namespace(n) for n in ("client", "instance", "collector"))
        lab.link((self.client, "eth0", f"{CLIENT}/24"), (self.instance, "eth0", f"{INSTANCE}/24"), 1500)
        if sink == "ifb":
            self._ifb_sink()
        else:
            self._veth_sink(lab)
        self.instance.run("ping", "-c", "1", CLIENT)

    def _veth_sink(self, lab):
        """A collector on this machine: what it does with a packet runs on the sender's CPU."""
        lab.link((self.instance, "mirror0", f"{MIRROR}/24"), (self.collector, "monitor0", f"{COLLECTOR}/24"), 1600)
        # The earliest and cheapest drop there is: a classifier of one instruction, return TC_ACT_SHOT.
        self.collector.run("tc", "qdisc", "add", "dev", "monitor0", "clsact")
        self.collector.run(
            *("tc", "filter", "add", "dev", "monitor0", "ingress", "prio", "1"),
            *("bpf", "da", "bytecode", "1,6 0 0 2,"),
        )
        self._neighbour(self.collector.run("cat", "/sys/class/net/monitor0/address").strip())

    def _ifb_sink(self):
        """A device that drops what it is given to transmit, as a NIC takes it off the CPU's hands."""
        self.instance.run("ip", "link", "add", "mirror0", "mtu", "1600", "type", "ifb")
        self.instance.run("ip", "address", "add", f"{MIRROR}/24", "dev", "mirror0")
        self.instance.run("ip", "link", "set", "mirror0", "up")
        self._neighbour("02:00:00:00:00:99")

    def _neighbour(self, mac):
        self.instance.run("ip", "neigh", "replace", COLLECTOR, "lladdr", mac, "dev", "mirror0", "nud", "permanent")

    def device_able(self, able):
        """Whether the mirror's device takes tunnels' and UDP super-packets."""
        for offload in OFFLOADS:
            self.instance.run("ethtool", "-K", "mirror0", offload, "on" if able else "off")


class Nothing:
    """No mirror."""

    name = "no mirror"

    def start(self, bench):
        return self

    def stop(self):
        return {}


class Tap:
    """xtee's tap, everything mirrored, in VXLAN by UDP."""

    def __init__(self, gso="auto"):
        self.gso = gso
        self.name = f"xtee tap (gso={gso})"

    def start(self, bench):
        url = f"vxlan://{COLLECTOR}?vni=7&gso={self.gso}&limit=none"
        self.xtee = Xtee(bench.lab, bench.instance, ("tap:eth0", "--to", url, "--transmit", "udp", "--cpus", POLLER_CPU))
        return self

    def stop(self):
        status = self.xtee.quiet_status()
        balance = Balance(status)
        self.xtee.stop()
        if balance.problems:
            raise RuntimeError(f"the balance is off: {balance.problems}")
        return {"seen": balance.seen, "sent": balance.sent, "lost": sum(balance.dropped.values())}


class Mirred:
    """tc mirred of both directions into a VXLAN device."""

    name = "tc mirred -> vxlan"

    def start(self, bench):
        self.instance = bench.instance
        ip = ("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "remote", COLLECTOR, "local", MIRROR)
        self.instance.run(*ip, "dstport", "4789", "dev", "mirror0", "noudpcsum")
        self.instance.run("ip", "link", "set", "vx0", "up")
        self.instance.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        for direction in ("ingress", "egress"):
            # This kernel has no matchall; a u32 filter that matches everything.
            self.instance.run(
                *("tc", "filter", "add", "dev", "eth0", direction, "protocol", "all", "prio", "1", "u32"),
                *("match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", "vx0"),
            )
        return self

    def stop(self):
        self.instance.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
        self.instance.run("ip", "link", "del", "vx0")
        return {}


def spread(values):
    """Median and extremes as text."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def machine():
    """What the figures were made on."""
    processor = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="ascii") if "model name" in line), "?"
    )
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "kernel": os.uname().release,
        "cpu": processor,
        "cpus": os.cpu_count(),
        "commit": commit.stdout.strip() or "?",
    }


__all__ = ["Bench", "Lab", "Mirred", "Nothing", "Tap", "machine", "run", "spread", "wait_until"]
