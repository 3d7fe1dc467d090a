#!/usr/bin/env python3
"""Bulk TCP that production keeps while it is mirrored whole, in and out, beside tc mirred into VXLAN.

The target's device able (gso=on) and unable to take super-packets. Kept = Gbit/s with the mirror divided by
Gbit/s without, in the same round; the order alternates from round to round.
"""

import json
import os
import sys

from bench_lab import INSTANCE, PRODUCTION_CPU, Bench, Lab, Mirred, Nothing, Tap, spread

LEAST_KEPT = 0.80


def gigabits(bench, direction, seconds):
    reverse = ("-R",) if direction == "out" else ()
    command = ("taskset", "-c", PRODUCTION_CPU, "iperf3", "-c", INSTANCE, "-t", seconds, "-J", *reverse)
    result = json.loads(bench.client.run(*command))
    return result["end"]["sum_received"]["bits_per_second"] / 1e9


def measure(sink, rounds, seconds):
    results = {}
    with Lab() as lab:
        bench = Bench(lab, sink)
        server = bench.instance.start(
            "iperf3", "taskset", "-c", PRODUCTION_CPU, "iperf3", "--forceflush", "-s", "-B", INSTANCE
        )
        server.wait_for_output("Server listening")
        gigabits(bench, "out", 1)
        for able in (True, False):
            bench.device_able(able)
            for direction in ("in", "out"):
                cell = {"none": [], "xtee": [], "mirred": [], "seen": 0, "lost": 0}
                for number in range(rounds):
                    xtee = Tap("on" if able else "auto")
                    order = [("none", Nothing()), ("xtee", xtee), ("mirred", Mirred())]
                    for name, mirror in order if number % 2 == 0 else reversed(order):
                        mirror.start(bench)
                        cell[name].append(gigabits(bench, direction, seconds))
                        counted = mirror.stop()
                        cell["seen"] += counted.get("seen", 0)
                        cell["lost"] += counted.get("lost", 0)
                results[f"{'able' if able else 'unable'}, {direction}"] = cell
    return results


def report(sink, results, rounds, seconds):
    print(f"bulk TCP, one flow, collector {sink}, {rounds} rounds of {seconds} s, alternating; kept = with / without")
    for name, cell in results.items():
        kept = {which: [b / a for a, b in zip(cell["none"], cell[which])] for which in ("xtee", "mirred")}
        cell["kept"] = kept
        print(f"  device {name}")
        print(f"    no mirror        {spread(cell['none'])} Gbit/s")
        print(f"    xtee tap keeps   {spread(kept['xtee'])}   (bar: at least {LEAST_KEPT})")
        print(f"    tc mirred keeps  {spread(kept['mirred'])}")
        print(f"    xtee's copies    {cell['seen']} packets seen, {cell['lost']} lost")


def main():
    quick = bool(os.environ.get("QUICK"))
    rounds, seconds = (5, 1) if quick else (7, 3)
    results = {}
    for sink in ("ifb", "veth"):
        results[sink] = measure(sink, rounds, seconds)
        report(sink, results[sink], rounds, seconds)
    return results


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
