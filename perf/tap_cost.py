#!/usr/bin/env python3
"""Nanoseconds that a full mirror adds to a 64-byte production packet: xtee's tap beside tc mirred into VXLAN.

One UDP sender on CPU 0 of the instance, a packet a system call; added = time a packet with the mirror less
time a packet without, in the same round; the order of the mirrors alternates from round to round. Many short
rounds: what disturbs a machine lasts longer than one of them.
"""

import os
import sys

from bench_lab import CLIENT, PRODUCTION_CPU, Bench, Lab, Mirred, Nothing, Tap, spread

FRAME = 64
HEADERS = 14 + 20 + 8
PORT = 9


def nanoseconds_a_packet(bench, seconds):
    flood = os.environ["FLOOD"]
    command = ("taskset", "-c", PRODUCTION_CPU, flood, f"{CLIENT}:{PORT}", FRAME - HEADERS, seconds)
    packets, elapsed = bench.instance.run(*command).split()
    return int(elapsed) / int(packets)


def measure(rounds, seconds):
    """For each mirror the time a packet, one value a round, and what xtee counted."""
    with Lab() as lab:
        bench = Bench(lab, "veth")
        bench.device_able(False)
        # Nobody listens: no ICMP error may come back and be measured too.
        bench.client.run("nft", "add", "table", "netdev", "sink")
        bench.client.run("nft", "add chain netdev sink in { type filter hook ingress device eth0 priority 0; }")
        bench.client.run("nft", "add", "rule", "netdev", "sink", "in", "udp", "dport", str(PORT), "drop")
        nanoseconds_a_packet(bench, 0.5)
        times = {"none": [], "xtee": [], "mirred": []}
        lost = seen = 0
        for number in range(rounds):
            order = [("none", Nothing()), ("xtee", Tap()), ("mirred", Mirred())]
            for name, mirror in order if number % 2 == 0 else reversed(order):
                mirror.start(bench)
                times[name].append(nanoseconds_a_packet(bench, seconds))
                counted = mirror.stop()
                lost += counted.get("lost", 0)
                seen += counted.get("seen", 0)
        return times, seen, lost


def main():
    quick = bool(os.environ.get("QUICK"))
    rounds, seconds = (15, 0.5) if quick else (31, 0.5)
    times, seen, lost = measure(rounds, seconds)
    added = {name: [b - a for a, b in zip(times["none"], times[name])] for name in ("xtee", "mirred")}
    ratios = [x / m for x, m in zip(added["xtee"], added["mirred"])]
    print(f"64-byte UDP, {rounds} rounds of {seconds} s, alternating")
    print(f"  no mirror          {spread(times['none'])} ns a packet")
    print(f"  xtee tap adds      {spread(added['xtee'])} ns")
    print(f"  tc mirred adds     {spread(added['mirred'])} ns")
    print(f"  xtee / mirred      {spread(ratios)}   (bar: at most 0.25)")
    print(f"  xtee's copies      {seen} packets seen, {lost} lost")
    return {"times": times, "added": added, "ratio": ratios, "seen": seen, "lost": lost}


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
