#!/usr/bin/env python3
"""`xtee loss` beside tshark's statistics on a large capture that it makes.

    XTEE=target/release/xtee perf/loss_bench.py [MEGABYTES]      1000 by default

Makes the capture in a temporary folder (64 flows, data and acknowledgments, 1 % of the data missing), times both
several times with the file in the page cache, and prints times, their ratio, and the peak memory of each.
"""

import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

XTEE = os.environ.get("XTEE", "target/release/xtee")
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def packet(client, flow, seq, ack, size, number):
    source, destination = (1, 2) if client else (2, 1)
    ports = (40000 + flow, 443) if client else (443, 40000 + flow)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + size, number & 0xffff, 0x4000, 64, 6, 0,
                     bytes([198, 51, 100, source]), bytes([198, 51, 100, destination]))
    tcp = struct.pack("!HHIIBBHHH", *ports, seq & 0xffffffff, ack & 0xffffffff, 0x50, 0x10, 1000, 0, 0)
    return b"\x02\0\0\0\0\1\x02\0\0\0\0\2\x08\0" + ip + tcp + bytes(size)


def make(path, megabytes):
    flows, segments, written, number, micros = 64, [0] * 64, 0, 0, 1_700_000_000_000_000
    packets = 0
    with open(path, "wb", buffering=1 << 20) as file:
        file.write(struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 65535, 1))
        while written < megabytes << 20:
            for flow in range(flows):
                at = segments[flow]
                segments[flow] += 1
                number += 1
                for client, late in ((True, 0), (False, 20)):
                    if client and number * 2654435761 % 100 == 7:
                        continue
                    frame = packet(client, flow, 1 + at * 1448, 1, 1448, number) if client else \
                        packet(client, flow, 1, 1 + (at + 1) * 1448, 0, number)
                    now = micros + flow * 30 + late
                    file.write(struct.pack("<IIII", now // 1000000, now % 1000000, len(frame), len(frame)) + frame)
                    written += 16 + len(frame)
                    packets += 1
            micros += flows * 30 + 100
    return packets


def measure(command):
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def main():
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "large.pcap"
        packets = make(path, megabytes)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {packets} packets")
        commands = {
            "xtee loss": [XTEE, "loss", "--json", str(path)],
            "tshark -q -z conv,tcp -z expert": ["tshark", "-n", "-q", "-r", str(path), "-z", "conv,tcp", "-z", "expert"],
        }
        best = {}
        for name, command in commands.items():
            rounds = ROUNDS if name.startswith("xtee") else 1
            figures = [measure(command) for _ in range(rounds)]
            times = sorted(figure[0] for figure in figures)
            best[name] = times[0]
            memory = max(figure[1] for figure in figures)
            listed = ", ".join(f"{one:.2f}" for one in times)
            print(f"{name}: {listed} s; {times[0] / packets * 1e9:.0f} ns a packet; peak {memory:.0f} MB")
        ours, theirs = best.values()
        print(f"ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
