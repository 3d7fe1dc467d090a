#!/usr/bin/env python3
"""Says what the tests and the demo need of this kernel and do not get. Quiet, with exit code 0, if all is there.

Everything is tried in a network namespace of its own that goes away with the process.
"""

import ctypes
import os
import platform
import re
import socket
import struct
import subprocess
import sys

OLDEST_KERNEL = (5, 15)
CLONE_NEWNET = 0x40000000
AF_XDP = 44
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
BPF_MAP_CREATE = 0
BPF_MAP_TYPE_XSKMAP, BPF_MAP_TYPE_RINGBUF = 17, 27
LIBC = ctypes.CDLL(None, use_errno=True)


def run(command):
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{command}: {' '.join((done.stderr or done.stdout).split())}")


def create_map(kind, key_size, value_size, entries):
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        return  # an architecture whose number is not known here: the tests will tell
    attributes = struct.pack("IIIII", kind, key_size, value_size, entries, 0).ljust(128, b"\0")
    descriptor = LIBC.syscall(number, BPF_MAP_CREATE, attributes, len(attributes))
    if descriptor < 0:
        raise OSError(os.strerror(ctypes.get_errno()))
    os.close(descriptor)


def own_namespace():
    if LIBC.unshare(CLONE_NEWNET) != 0:
        raise OSError(os.strerror(ctypes.get_errno()))


def veth():
    run("ip link add probe0 type veth peer name probe1")


def classifier():
    run("tc qdisc add dev probe0 clsact")


def mirred():
    run(
        "tc filter add dev probe0 egress protocol all u32 match u32 0 0 action mirred egress mirror dev probe1"
    )


PROBES = (
    ("network namespaces", "CONFIG_NET_NS, CAP_SYS_ADMIN", own_namespace),
    ("veth devices", "CONFIG_VETH: modprobe veth", veth),
    ("tc's clsact", "CONFIG_NET_CLS_ACT, CONFIG_NET_SCH_INGRESS: modprobe sch_ingress", classifier),
    (
        "tc's mirred (the demo's switch)",
        "CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED: modprobe cls_u32 act_mirred",
        mirred,
    ),
    ("BPF ring buffers", "CONFIG_BPF_SYSCALL, CAP_BPF", lambda: create_map(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096)),
    ("BPF maps of AF_XDP sockets", "CONFIG_XDP_SOCKETS", lambda: create_map(BPF_MAP_TYPE_XSKMAP, 4, 4, 1)),
    ("AF_XDP sockets", "CONFIG_XDP_SOCKETS", lambda: socket.socket(AF_XDP, socket.SOCK_RAW, 0).close()),
    (
        "packet sockets",
        "CONFIG_PACKET: modprobe af_packet",
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close(),
    ),
)


def main():
    if os.geteuid() != 0:
        sys.exit("probe: error: not root; namespaces and BPF need it: run the same make command as root")
    version = tuple(map(int, re.match(r"(\d+)\.(\d+)", platform.release()).groups()))
    problems = []
    if version < OLDEST_KERNEL:
        problems.append(
            f"Linux {platform.release()}: at least {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]} is needed"
        )
    for name, remedy, probe in PROBES:
        try:
            probe()
        except OSError as error:
            problems.append(f"no {name}: {error} ({remedy})")
            if probe is own_namespace:
                break  # the others would touch the host's own network
    if problems:
        print(
            f"probe: error: this kernel (Linux {platform.release()}) lacks something:",
            *problems,
            sep="\n  ",
            file=sys.stderr,
        )
        print("  in a container: run it privileged", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
