"""xtee itself in the lab: started, asked for its counters, ended; and whether its balance holds."""

import json
import os
import signal
import time

from lab import LabError, wait_until


class Xtee:
    """One running `xtee mirror`; `stop` ends it as an operator would."""

    def __init__(self, lab, namespace, arguments):
        self.binary = os.environ["XTEE"]
        self.namespace = namespace
        self.socket = lab.directory / f"xtee-{len(lab.processes)}.socket"
        self.process = namespace.start("xtee", self.binary, "mirror", *arguments, "--socket", self.socket)
        wait_until(self._answers, 10, "xtee to answer on its socket")
        self.at_start = self.process.output()

    def _answers(self):
        if not self.process.alive():
            raise LabError(
                f"xtee ended with exit code {self.process.popen.returncode}:\n{self.process.output().strip()}"
            )
        return self.socket.exists() and self.status(check=False)

    def plan(self):
        """What it printed until it was ready."""
        return self.at_start

    def status(self, check=True):
        text = self.namespace.run(self.binary, "status", "--json", "--socket", self.socket, check=check)
        return json.loads(text) if text else None

    def quiet_status(self):
        """The counters when nothing is under way: two equal answers, nothing in flight."""
        deadline = time.monotonic() + 5
        before = None
        while time.monotonic() < deadline:
            status = self.status()
            # A worker counts its sleeps, so it never rests; packets are counted beside it.
            sources = [{key: value for key, value in source.items() if key != "workers"} for source in status["sources"]]
            counters = [sources, status["targets"]]
            if counters == before and not any(target["in_flight"] for target in status["targets"]):
                return status
            before = counters
            time.sleep(0.15)
        raise LabError("xtee's counters do not come to rest")

    def stop(self):
        """Ends it and returns the balance that it prints at the end."""
        printed = len(self.process.output())
        code = self.process.stop(signal.SIGINT)
        if code != 0:
            raise LabError(f"xtee ended with exit code {code} after SIGINT:\n{self.process.output().strip()}")
        return self.process.output()[printed:]


class Balance:
    """The equations that must hold exactly whenever nothing is under way."""

    def __init__(self, status):
        sources, targets = status["sources"], status["targets"]
        self.problems = []
        self.seen = sum(source["seen"] for source in sources)
        self.unmatched = sum(source["unmatched"] for source in sources)
        self.sent = sum(target["sent_packets"] for target in targets)
        self.dropped = {}
        for part in (*sources, *targets):
            for reason, number in part["dropped"].items():
                if number:
                    self.dropped[reason] = self.dropped.get(reason, 0) + number
        for source in sources:
            self._equal(
                source["name"],
                "seen",
                source["seen"],
                "unmatched + matched",
                source["unmatched"] + source["matched"],
            )
            self._equal(
                source["name"],
                "matched",
                source["matched"],
                "captured + dropped",
                source["captured"] + sum(source["dropped"].values()),
            )
        captured = sum(source["captured"] for source in sources)
        for target in targets:
            done = target["sent_packets"] + sum(target["dropped"].values()) + target["in_flight"]
            self._equal(target["url"], "offered", target["offered"], "sent + dropped + in flight", done)
            self._equal(target["url"], "offered", target["offered"], "captured", captured)
        if not self.seen or not self.sent:
            self.problems.append("xtee saw or sent nothing")

    def _equal(self, where, left, left_value, right, right_value):
        if left_value != right_value:
            self.problems.append(
                f"the balance of {where} does not hold: {left} {left_value}, {right} {right_value}"
            )
