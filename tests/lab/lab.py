"""Network namespaces, veth links and processes of a test lab, all of them gone when the lab is closed.

Called by the demo. Everything a lab makes bears its process id in the name; it ends only processes
that it started itself, and they die with it, even when it is killed with SIGKILL.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "xtee-demo"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """Something in the lab did not come about; the text says what."""


def run(*command, check=True):
    """Runs a command to its end and returns its standard output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise LabError(
            f"{' '.join(command)}: exit code {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def wait_until(condition, seconds, what):
    """Polls until `condition()` is true and returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def _die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A process that the lab started in a namespace, its output in a file."""

    def __init__(self, name, command, log):
        self.name = name
        self.log = log
        with open(log, "wb") as output:
            # A session of its own: Ctrl-C reaches the lab alone, which then ends things in order.
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def output(self):
        return self.log.read_text(errors="replace")

    def alive(self):
        return self.popen.poll() is None

    def wait_for_output(self, text, seconds=10):
        def there():
            if text in self.output():
                return True
            if not self.alive():
                raise LabError(
                    f"{self.name} ended with exit code {self.popen.returncode}:\n{self.output().strip()}"
                )
            return False

        wait_until(there, seconds, f"{self.name} to print {text!r}; it printed:\n{self.output()[-2000:]}")

    def stop(self, signal_number=signal.SIGINT, seconds=15):
        """Signals the process, waits for its end and returns its exit code."""
        if self.alive():
            self.popen.send_signal(signal_number)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise LabError(f"{self.name} did not end within {seconds} s of signal {signal_number}") from None


class Namespace:
    """One network namespace, made for a host of the lab."""

    def __init__(self, lab, host):
        self.lab = lab
        self.name = f"{PREFIX}-{os.getpid()}-{host}"

    def create(self):
        run("ip", "netns", "add", self.name)
        # Neighbour discovery and router solicitations would be noise among the packets that are counted.
        for scope in ("all", "default"):
            self.run(
                "sysctl",
                "-qw",
                f"net.ipv6.conf.{scope}.disable_ipv6=1",
                check=Path("/proc/sys/net/ipv6").exists(),
            )
        self.run("ip", "link", "set", "lo", "up")

    def command(self, *command):
        return ("ip", "netns", "exec", self.name, *map(str, command))

    def run(self, *command, check=True):
        return run(*self.command(*command), check=check)

    def start(self, name, *command):
        """Starts a long-running process here; the lab ends it at the latest when it closes."""
        log = self.lab.directory / f"{len(self.lab.processes)}-{name}.log"
        process = Process(name, self.command(*command), log)
        self.lab.processes.append(process)
        return process


class Lab:
    """Use as a context manager: leaving it, however that comes about, removes everything it made."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-"))
        self.processes = []
        self.namespaces = []

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        # A shell without job control starts background processes with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        remove_abandoned()
        return self

    def __exit__(self, *_):
        # A second Ctrl-C must not leave half of it behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for process in reversed(self.processes):
            if process.alive():
                process.popen.terminate()
        for process in reversed(self.processes):
            try:
                process.popen.wait(3)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        for namespace in self.namespaces:
            run("ip", "netns", "delete", namespace.name, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def namespace(self, host):
        namespace = Namespace(self, host)
        # Noted before it is made: an interruption in between must not leave it behind.
        self.namespaces.append(namespace)
        namespace.create()
        return namespace

    def link(self, left, right, mtu):
        """A veth pair between two (namespace, interface, address or None)."""
        run(
            "ip",
            "link",
            "add",
            left[1],
            "mtu",
            str(mtu),
            "netns",
            left[0].name,
            "type",
            "veth",
            "peer",
            "name",
            right[1],
            "mtu",
            str(mtu),
            "netns",
            right[0].name,
        )
        for namespace, interface, address in (left, right):
            if address:
                namespace.run("ip", "address", "add", address, "dev", interface)
            # Neighbours are looked up once: no probe in the middle of what is counted.
            namespace.run("sysctl", "-qw", f"net.ipv4.neigh.{interface}.delay_first_probe_time=300")
            namespace.run("ip", "link", "set", interface, "up")


def remove_abandoned():
    """Removes what labs left whose process is gone (killed before it could clean up)."""

    def abandoned(directory):
        for entry in directory.iterdir() if directory.exists() else ():
            match = re.fullmatch(rf"{PREFIX}-(\d+)-\w+", entry.name)
            if match and not Path(f"/proc/{match.group(1)}").exists():
                yield entry

    for entry in abandoned(Path("/run/netns")):
        run("ip", "netns", "delete", entry.name, check=False)
    for entry in abandoned(Path(tempfile.gettempdir())):
        shutil.rmtree(entry, ignore_errors=True)
