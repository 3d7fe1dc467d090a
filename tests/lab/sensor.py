"""Suricata on the collector: its configuration, its rules, and what it says of the copies.

It reads the collector's interface by AF_PACKET as any sensor would, and decapsulates by itself. Its
checksum validation is on, so a copy with a bad checksum raises no alert.
"""

import json
import signal

REQUEST_MARKER = "xtee-demo-attack"
RESPONSE_MARKER = "XTEE-DEMO-PAYLOAD"
REQUEST_RULE, RESPONSE_RULE = 9000001, 9000002

RULES = f"""\
alert http any any -> any any (msg:"xtee demo: marker in an HTTP request"; http.uri; \
content:"{REQUEST_MARKER}"; sid:{REQUEST_RULE}; rev:1;)
alert http any any -> any any (msg:"xtee demo: marker in an HTTP response"; flow:to_client; file.data; \
content:"{RESPONSE_MARKER}"; sid:{RESPONSE_RULE}; rev:1;)
"""

CONFIGURATION = """\
%YAML 1.1
---
default-log-dir: {directory}
default-rule-path: {directory}
rule-files: [ demo.rules ]
classification-file: {directory}/empty
reference-config-file: {directory}/empty
threshold-file: {directory}/empty
stats: {{ enabled: yes, interval: 2, decoder-events: true }}
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      types: [ alert: {{}}, stats: {{ totals: yes, threads: no, deltas: no }} ]
logging:
  default-log-level: notice
  outputs: [ console: {{ enabled: yes }} ]
af-packet:
  - interface: {interface}
    threads: 1
    cluster-id: 99
    cluster-type: cluster_flow
    defrag: no
    use-mmap: yes
    tpacket-v3: yes
    block-size: 1048576
    ring-size: 65536
    checksum-checks: yes
decoder:
  vxlan: {{ enabled: true, ports: [ 4789 ] }}
app-layer:
  protocols:
    http: {{ enabled: yes }}
    dns: {{ udp: {{ enabled: yes }}, tcp: {{ enabled: yes }} }}
stream:
  checksum-validation: yes
  inline: no
unix-command: {{ enabled: no }}
max-pending-packets: 4096
"""


def faults(stats, path=""):
    """All counters of broken packets in Suricata's statistics that are not zero."""
    found = {}
    for name, value in stats.items():
        full = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            found.update(faults(value, full))
        elif value and any(
            word in name for word in ("invalid", "trunc", "too_small", "too_large", "unsupported")
        ):
            found[full] = value
    return found


class Sensor:
    """A Suricata that reads one interface of a namespace."""

    def __init__(self, lab, namespace, interface):
        self.directory = lab.directory / f"suricata-{interface}"
        self.directory.mkdir()
        (self.directory / "empty").write_text("")
        (self.directory / "demo.rules").write_text(RULES)
        configuration = self.directory / "suricata.yaml"
        configuration.write_text(CONFIGURATION.format(directory=self.directory, interface=interface))
        self.process = namespace.start(
            f"suricata-{interface}",
            "suricata",
            "-c",
            configuration,
            "-l",
            self.directory,
            f"--af-packet={interface}",
        )
        self.process.wait_for_output("Engine started", 30)

    def events(self):
        log = self.directory / "eve.json"
        events = []
        for line in log.read_text().splitlines() if log.exists() else ():
            try:
                events.append(json.loads(line))
            except ValueError:
                break  # the line that is being written
        return events

    def alerts(self):
        return [event for event in self.events() if event["event_type"] == "alert"]

    def stop(self):
        """Ends Suricata, which then writes its last statistics; returns them."""
        code = self.process.stop(signal.SIGINT, 30)
        stats = [event["stats"] for event in self.events() if event["event_type"] == "stats"]
        if code != 0 or not stats:
            raise RuntimeError(f"Suricata ended with exit code {code}:\n{self.process.output()}")
        return stats[-1]
