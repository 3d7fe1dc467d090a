"""Production's bandwidth without and with the mirror, measured in turn so that both meet the same machine."""

import json
from dataclasses import dataclass, field
from statistics import median

import mirror

ROUNDS, SECONDS = 2, 3
# Both ends of production; the mirror's poller has another CPU, as it would on a host of its own.
PRODUCTION_CPU = "0"
# A mirror that takes production's CPU or slows its packets shows far below this; what remains above is
# the share that the poller takes of a small machine on which all hosts of the lab run.
LEAST_KEPT = 0.5


@dataclass
class Production:
    """Gbit/s by direction (out: instance to client) and whether the mirror ran."""

    without: dict = field(default_factory=lambda: {"out": [], "in": []})
    mirrored: dict = field(default_factory=lambda: {"out": [], "in": []})
    seen: int = 0
    sent: int = 0
    dropped: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)

    def kept(self, direction):
        return median(self.mirrored[direction]) / median(self.without[direction])

    def summary(self):
        return [
            f"{median(self.without[d]):.1f} -> {median(self.mirrored[d]):.1f} Gbit/s ({self.kept(d):.0%})"
            for d in ("out", "in")
        ]

    def lines(self):
        for direction in ("out", "in"):
            pairs = ", ".join(
                f"{a:.1f} -> {b:.1f}" for a, b in zip(self.without[direction], self.mirrored[direction])
            )
            yield f"{direction:>3}: without -> with the mirror: {pairs} Gbit/s; kept {self.kept(direction):.0%}"
        dropped = "".join(f", {number} dropped by {reason}" for reason, number in self.dropped.items())
        yield f"copies meanwhile: {self.seen} packets seen, {self.sent} sent{dropped or ', none dropped'}"


def iperf(client, address, direction):
    """Gbit/s of one TCP connection; `out` is from the server, the instance, to the client."""
    reverse = ["-R"] if direction == "out" else []
    result = json.loads(client.run("taskset", "-c", PRODUCTION_CPU, "iperf3", "-c", address, "-t", SECONDS, "-J", *reverse))
    return result["end"]["sum_received"]["bits_per_second"] / 1e9


def measure(client, instance, address, start_mirror):
    """Alternates; the mirror may drop copies here (production comes first), but has to count each of them."""
    server = instance.start("iperf3", "taskset", "-c", PRODUCTION_CPU, "iperf3", "--forceflush", "-s", "-B", address)
    server.wait_for_output("Server listening")
    result = Production()
    for _ in range(ROUNDS):
        for direction in ("out", "in"):
            result.without[direction].append(iperf(client, address, direction))
            xtee = start_mirror()
            result.mirrored[direction].append(iperf(client, address, direction))
            balance = mirror.Balance(xtee.quiet_status())
            xtee.stop()
            result.seen += balance.seen
            result.sent += balance.sent
            for reason, number in balance.dropped.items():
                result.dropped[reason] = result.dropped.get(reason, 0) + number
            result.problems += balance.problems
    server.stop()
    for direction in ("out", "in"):
        if result.kept(direction) < LEAST_KEPT:
            kept = f"production {direction} kept {result.kept(direction):.0%} of its bandwidth"
            result.problems.append(f"{kept}, less than {LEAST_KEPT:.0%}")
    return result
