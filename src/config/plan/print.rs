//! The plan as text, for `xtee check` and the log of `xtee run`.

use std::fmt;

use super::{
    Attach, Capture, Choice, Plan, SourcePlan, TargetPlan, Transmitter, UdpSend, WorkerPlan,
    XdpMode,
};
use crate::config::settings::{Breaker, Distribution, HealthCheck, Interface, ZeroCopy};
use crate::config::values::{human, human_bits};
use crate::packet::fit::Oversize;
use crate::packet::link::{synthetic_macs, LinkType};

macro_rules! words {
    ($($kind:ident { $($variant:ident => $word:literal),+ })+) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($kind::$variant => $word),+ })
            }
        }
    )+};
}

words! {
    Attach { Tcx => "tcx", Clsact => "clsact" }
    XdpMode { Native => "native", Generic => "generic" }
    ZeroCopy { Require => "require", Prefer => "prefer", Never => "never" }
    Transmitter { Udp => "udp", Xsk => "xsk", Raw => "raw" }
    UdpSend { Segment => "UDP_SEGMENT", Sendmmsg => "sendmmsg" }
}

impl<T: fmt::Display> fmt::Display for Choice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.value, self.why)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for source in &self.sources {
            write!(f, "{source}")?;
        }
        let default = if self.default_mirror {
            "mirrored"
        } else {
            "skipped"
        };
        match self.rules {
            0 => writeln!(f, "rules     none: packets are {default}")?,
            rules => writeln!(f, "rules     {rules}; what none takes is {default}")?,
        }
        for target in &self.targets {
            write!(f, "{target}")?;
        }
        for sink in &self.sinks {
            write!(f, "{sink}")?;
        }
        write!(f, "{}", self.breaker)?;
        writeln!(f, "control   {}", self.control_socket.display())?;
        for warning in &self.warnings {
            writeln!(f, "warning   {warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SourcePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source    {}", self.name)?;
        match &self.capture {
            Capture::Tap { attach, ring_size } => {
                writeln!(f, "  attach    {attach}")?;
                if self.chosen == Interface::DefaultRoute {
                    writeln!(
                        f,
                        "  interface {} now; follows the default route",
                        self.interface
                    )?;
                }
                if self.links.contains(&LinkType::Ip) {
                    let [_, outgoing] = synthetic_macs(&self.name);
                    let mac = |bytes: &[u8]| {
                        let words: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
                        words.join(":")
                    };
                    writeln!(
                        f,
                        "  link      {}: copies get an Ethernet header, here {} and there {}",
                        match self.links.len() {
                            1 => "IP packets",
                            _ => "where it is IP packets",
                        },
                        mac(&outgoing[6..]),
                        mac(&outgoing[..6])
                    )?;
                }
                writeln!(f, "  ring      {} for each worker", human(*ring_size))?;
            }
            Capture::Span {
                mode,
                zero_copy,
                busy_poll,
                frames,
                room,
                ..
            } => {
                writeln!(f, "  mode      {mode}")?;
                writeln!(f, "  zero copy {zero_copy}")?;
                let busy_poll = if *busy_poll { "preferred" } else { "no" };
                writeln!(f, "  busy poll {busy_poll}")?;
                writeln!(f, "  frames    {frames} for each queue")?;
                writeln!(f, "  room      {room}")?;
            }
        }
        for worker in &self.workers {
            writeln!(f, "  {worker}")?;
        }
        if self.allow_credential_endpoints {
            writeln!(f, "  copies traffic of the cloud's credential endpoints")?;
        }
        Ok(())
    }
}

impl fmt::Display for WorkerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}  ", self.index)?;
        match self.cpu {
            Some(cpu) => write!(f, "CPU {cpu}")?,
            None => write!(f, "not pinned (`cpus` pins it)")?,
        }
        if !self.queues.is_empty() {
            let queues: Vec<_> = self.queues.iter().map(u32::to_string).collect();
            write!(f, ", queues {}", queues.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for TargetPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "target    {}", self.url)?;
        let source = self.source.map(|source| format!(" from {source}"));
        let source = source.unwrap_or_default();
        let path = match self.path.len() {
            0 => self.device.clone(),
            _ => self.path.join(" over "),
        };
        writeln!(f, "  path      {}{source} by {path}", self.address)?;
        writeln!(
            f,
            "  size      path MTU {} ({}): inner frames of up to {} bytes fit",
            self.path_mtu, self.path_mtu_from, self.largest_frame
        )?;
        let oversize = match self.oversize {
            Oversize::Resegment => "resegment (TCP cut into segments that fit, others fragmented)",
            Oversize::Fragment => "fragment (outer IP fragments)",
            Oversize::Truncate => "truncate (Suricata and Zeek drop truncated packets)",
            Oversize::Drop => "drop",
        };
        writeln!(f, "  oversize  {oversize}")?;
        writeln!(f, "  transmit  {}", self.transmit)?;
        if let Some(jumbo) = &self.jumbo {
            writeln!(
                f,
                "  jumbo     {jumbo} (packets longer than an AF_XDP frame)"
            )?;
        }
        if let Some(gso) = &self.gso {
            writeln!(f, "  gso       {gso}")?;
        }
        writeln!(f, "  gets      {}", gets(self))?;
        let marks = [
            self.dscp.map(|dscp| format!("DSCP {dscp}")),
            self.ttl.map(|ttl| format!("TTL {ttl}")),
            self.priority
                .map(|priority| format!("socket priority {priority}")),
        ];
        let marks: Vec<_> = marks.into_iter().flatten().collect();
        if !marks.is_empty() {
            writeln!(f, "  marks     {}", marks.join(", "))?;
        }
        match (self.health, self.distribution) {
            (HealthCheck::None, _) => {
                writeln!(f, "  health    none: it is never taken for unhealthy")
            }
            (HealthCheck::Neighbour, Distribution::All) => Ok(()),
            (HealthCheck::Neighbour, Distribution::Hash) => writeln!(
                f,
                "  health    neighbour: while it has no route, no link or no next hop that answers, the others \
                 have its flows"
            ),
        }
    }
}

/// Which packets a target gets, and how many.
fn gets(target: &TargetPlan) -> String {
    let share = match target.distribution {
        Distribution::All => "every packet",
        Distribution::Hash => "its share of the flows",
    };
    let bits = target.limit.map(human_bits);
    let packets = target.limit_packets.map(|rate| format!("{rate} packets/s"));
    let limits: Vec<_> = bits.into_iter().chain(packets).collect();
    if limits.is_empty() {
        return format!("{share}, without limit (limit = \"none\" asked for)");
    }
    let why = if target.limit_is_default {
        " (the default limit; `limit` sets another, \"none\" lifts it)"
    } else {
        ""
    };
    format!("{share}, at most {}{why}", limits.join(" and "))
}

impl fmt::Display for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.budget.map(human_bits);
        let packets = self.budget_packets.map(|rate| format!("{rate} packets/s"));
        let rates: Vec<_> = bits.into_iter().chain(packets).collect();
        let rates = (!rates.is_empty()).then(|| {
            format!(
                "all targets together would get more than {}",
                rates.join(" or ")
            )
        });
        let load = self.load.map(|load| {
            let percent = f64::from(load) / 10.0;
            format!("the CPUs are busy for more than {percent}% of the time")
        });
        let all: Vec<_> = rates.into_iter().chain(load).collect();
        if all.is_empty() {
            return Ok(());
        }
        writeln!(f, "breaker   no copies while {}", all.join(", or "))
    }
}
