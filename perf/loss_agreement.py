#!/usr/bin/env python3
"""Puts the counts of `xtee loss` beside those of tshark and tcptrace, for each capture of a folder.

    XTEE=target/release/xtee perf/loss_agreement.py FOLDER > table.md

Only captures with TCP get a line. Reads, and writes nothing but the table. tcptrace reads classic pcap only;
what is not goes through editcap into a temporary file first. What the columns have to do with each other is in
perf/loss-agreement.md.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

XTEE = os.environ.get("XTEE", "target/release/xtee")
FLAGS = ["retransmission", "fast_retransmission", "spurious_retransmission", "out_of_order",
         "lost_segment", "ack_lost_segment", "keep_alive", "zero_window", "zero_window_probe"]


def xtee(path):
    done = subprocess.run([XTEE, "loss", "--json", str(path)], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def tshark(path):
    fields = [f"tcp.analysis.{flag}" for flag in FLAGS]
    command = ["tshark", "-n", "-r", str(path), "-Y", "tcp.analysis.flags", "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = dict.fromkeys(FLAGS, 0)
    for line in done.stdout.splitlines():
        for flag, value in zip(FLAGS, line.split("\t")):
            counts[flag] += bool(value)
    return counts


def tcptrace(path):
    with tempfile.TemporaryDirectory() as folder:
        classic = pathlib.Path(folder) / "classic.pcap"
        made = subprocess.run(["editcap", "-F", "pcap", str(path), str(classic)], capture_output=True, check=False)
        if made.returncode != 0:
            return None
        done = subprocess.run(["tcptrace", "-n", "-l", "-r", str(classic)], capture_output=True, text=True,
                              errors="replace", check=False)
    text = done.stdout
    if "TCP connection 1:" not in text:
        return None

    def total(name):
        found = re.findall(rf"{name}:\s+(\S+)(?:\s+bytes)?\s+{name}:\s+(\S+)", text)
        return sum(int(value) for pair in found for value in pair if value.isdigit())

    return {"rexmt": total("rexmt data pkts"), "outoforder": total("outoforder pkts"),
            "missed": total("missed data"), "hwdups": text.count("hardware dups") and total("hardware dups"),
            "unknown": len(re.findall(r"missed data:\s+NA", text)) + len(re.findall(r"missed data:.*\s+NA", text))}


def merged(document):
    def add(a, b):
        if isinstance(a, dict):
            return {key: add(a[key], b[key]) for key in a}
        return a + b
    return add(document["tcp"], document["tcp_not_seen_whole"])


def main():
    print("| capture | xtee: seen again (needless, behind us) | before us / reordered | capture loss: holes, octets "
          "| unknown | copies | tshark: rtx (fast, spurious), out of order | lost / acked unseen | tcptrace: rexmt "
          "| out of order | missed |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        if ".pcap" not in path.name and ".dmp" not in path.name and ".dump" not in path.name:
            continue
        document = xtee(path)
        if document is None or not document["frames"]["tcp"]:
            continue
        ours, theirs, trace = merged(document), tshark(path), tcptrace(path)
        third = "| cannot read it | | |" if trace is None else \
            f"| {trace['rexmt']} | {trace['outoforder']} | {trace['missed']} |"
        print(f"| {path.name} "
              f"| {ours['retransmitted']['packets']} ({ours['spurious']['packets']}, "
              f"{ours['downstream_loss']['packets']}) "
              f"| {ours['upstream_loss']['packets']} / {ours['reordered']['packets']} "
              f"| {ours['capture_loss']['events']}, {ours['capture_loss']['octets']} "
              f"| {ours['unresolved']['octets']} | {ours['mirror_duplicates']} "
              f"| {theirs['retransmission']} ({theirs['fast_retransmission']}, "
              f"{theirs['spurious_retransmission']}), {theirs['out_of_order']} "
              f"| {theirs['lost_segment']} / {theirs['ack_lost_segment']} {third}", flush=True)


if __name__ == "__main__":
    main()
