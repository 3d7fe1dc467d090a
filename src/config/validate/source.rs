//! `[[source]]`.

use super::Check;
use crate::config::error::{ConfigError, Site};
use crate::config::file::{At, SourceTable};
use crate::config::settings::{
    AttachChoice, Interface, ModeChoice, Namespace, Source, SourceKind, Span, Tap, ZeroCopy,
    DEFAULT_FRAMES, DEFAULT_RING_SIZE, MAX_WORKERS,
};
use crate::config::values::{interface_in_namespace, namespace, size, word, Wrong};

const ATTACH: [(&str, AttachChoice); 3] = [
    ("auto", AttachChoice::Auto),
    ("tcx", AttachChoice::Tcx),
    ("clsact", AttachChoice::Clsact),
];
const MODE: [(&str, ModeChoice); 3] = [
    ("auto", ModeChoice::Auto),
    ("native", ModeChoice::Native),
    ("generic", ModeChoice::Generic),
];
const ZERO_COPY: [(&str, ZeroCopy); 3] = [
    ("require", ZeroCopy::Require),
    ("prefer", ZeroCopy::Prefer),
    ("never", ZeroCopy::Never),
];
/// Highest CPU number that a kernel can be built for.
const LARGEST_CPU: i64 = 8191;
/// Frames of a queue: the smallest still fills a batch, the largest is 4 GiB of 4 KiB frames.
const FRAMES: std::ops::RangeInclusive<i64> = 64..=1 << 20;

impl Check<'_> {
    pub(super) fn sources(&self, tables: &[At<SourceTable>]) -> Result<Vec<Source>, ConfigError> {
        if tables.is_empty() {
            let wrong = Wrong::new("there is no [[source]]", "at least one [[source]]");
            return Err(self.fault(&self.whole(), "source", wrong));
        }
        let mut sources: Vec<Source> = Vec::with_capacity(tables.len());
        for table in tables {
            let source = self.source(table)?;
            let same = |other: &&Source| {
                other.interface == source.interface && other.namespace == source.namespace
            };
            if let Some(other) = sources.iter().find(same) {
                let site = table.value.interface.as_ref().map(|at| &at.site);
                return Err(self.fault(
                    site.unwrap_or(&table.site),
                    "source.interface",
                    Wrong::new(
                        format!(
                            "{} is the interface of {} already",
                            source.interface,
                            other.name()
                        ),
                        "one [[source]] for each interface",
                    ),
                ));
            }
            sources.push(source);
        }
        Ok(sources)
    }

    fn source(&self, at: &At<SourceTable>) -> Result<Source, ConfigError> {
        let table = &at.value;
        let Some(kind) = &table.kind else {
            return Err(self.missing(&at.site, "source.kind", "tap, span"));
        };
        let tap = self.value(kind, "source.kind", |kind: &str| match kind {
            "wire" => Err(Wrong::not_built("a wire", "tap, span")),
            _ => word(kind, &[("tap", true), ("span", false)]),
        })?;
        let Some(name) = &table.interface else {
            let allowed = "the name of an interface, default-route";
            return Err(self.missing(&at.site, "source.interface", allowed));
        };
        let (interface, beside) = self.value(name, "source.interface", interface_in_namespace)?;
        let namespace = self.namespace(table, beside)?;
        if !tap && (namespace.is_some() || interface == Interface::DefaultRoute) {
            let key = match (&table.namespace, &namespace) {
                (Some(at), Some(_)) => (&at.site, "source.namespace"),
                _ => (&name.site, "source.interface"),
            };
            let wrong = match namespace {
                Some(_) => "a span takes packets in its own network namespace only",
                None => "a span would take the host's own traffic from it",
            };
            let allowed = "kind = \"tap\"; for a span, the name of an interface, and xtee run in its namespace";
            return Err(self.fault(key.0, key.1, Wrong::new(wrong, allowed)));
        }
        self.refuse_keys_of_other_kind(table, tap)?;
        let kind = if tap {
            SourceKind::Tap(self.tap(table)?)
        } else {
            SourceKind::Span(self.span(table)?)
        };
        let cpus = self.cpus(table)?;
        let workers = self.workers(table, &cpus)?;
        let on = |flag: &Option<At<bool>>| flag.as_ref().is_some_and(|at| at.value);
        Ok(Source {
            place: self.origin.place(&at.site),
            interface,
            namespace,
            kind,
            cpus,
            workers,
            allow_link_reset: on(&table.allow_link_reset),
            allow_credential_endpoints: on(&table.allow_credential_endpoints),
        })
    }

    /// The namespace, which stands in a key of its own or behind the interface's `@`.
    fn namespace(
        &self,
        table: &SourceTable,
        beside: Option<Namespace>,
    ) -> Result<Option<Namespace>, ConfigError> {
        let Some(at) = &table.namespace else {
            return Ok(beside);
        };
        let found = self.value(at, "source.namespace", namespace)?;
        if beside.is_some_and(|beside| beside != found) {
            let wrong = Wrong::new("the interface names another namespace", "one of the two");
            return Err(self.fault(&at.site, "source.namespace", wrong));
        }
        Ok(Some(found))
    }

    fn refuse_keys_of_other_kind(&self, table: &SourceTable, tap: bool) -> Result<(), ConfigError> {
        fn site<T>(at: &Option<At<T>>) -> Option<&Site> {
            at.as_ref().map(|at| &at.site)
        }
        let of_tap = [
            ("attach", site(&table.attach)),
            ("ring_size", site(&table.ring_size)),
        ];
        let of_span = [
            ("mode", site(&table.mode)),
            ("zero_copy", site(&table.zero_copy)),
            ("busy_poll", site(&table.busy_poll)),
            ("frames", site(&table.frames)),
        ];
        let (others, own): (&[_], &[_]) = if tap {
            (&of_span, &of_tap)
        } else {
            (&of_tap, &of_span)
        };
        let (this, that) = if tap {
            ("tap", "span")
        } else {
            ("span", "tap")
        };
        let found = others.iter().find_map(|&(key, site)| Some((key, site?)));
        let Some((key, site)) = found else {
            return Ok(());
        };
        let own: Vec<_> = own.iter().map(|&(key, _)| key).collect();
        Err(self.fault(
            site,
            &format!("source.{key}"),
            Wrong::new(
                format!("`{key}` is a setting of a {that}, and this source is a {this}"),
                format!("{} (settings of a {this})", own.join(", ")),
            ),
        ))
    }

    fn tap(&self, table: &SourceTable) -> Result<Tap, ConfigError> {
        let attach = match &table.attach {
            Some(at) => self.word(at, "source.attach", &ATTACH)?,
            None => AttachChoice::Auto,
        };
        let ring_size = match &table.ring_size {
            Some(at) => self.value(at, "source.ring_size", |v| size(v, 64 << 10..=1 << 30))?,
            None => DEFAULT_RING_SIZE,
        };
        Ok(Tap { attach, ring_size })
    }

    fn span(&self, table: &SourceTable) -> Result<Span, ConfigError> {
        let mode = match &table.mode {
            Some(at) => self.word(at, "source.mode", &MODE)?,
            None => ModeChoice::Auto,
        };
        let zero_copy = match &table.zero_copy {
            Some(at) => self.word(at, "source.zero_copy", &ZERO_COPY)?,
            None => ZeroCopy::Prefer,
        };
        if let (ModeChoice::Generic, ZeroCopy::Require, Some(at)) =
            (mode, zero_copy, &table.zero_copy)
        {
            return Err(self.fault(
                &at.site,
                "source.zero_copy",
                Wrong::new("generic XDP has no zero copy", "prefer, never"),
            ));
        }
        let frames = match &table.frames {
            Some(at) => self.value(at, "source.frames", |&frames: &i64| {
                let possible = FRAMES.contains(&frames) && (frames as u32).is_power_of_two();
                possible.then_some(frames as u32).ok_or_else(|| {
                    let (first, last) = (FRAMES.start(), FRAMES.end());
                    Wrong::new(
                        format!("{frames} frames are not possible"),
                        format!("a power of two from {first} to {last}"),
                    )
                })
            })?,
            None => DEFAULT_FRAMES,
        };
        Ok(Span {
            mode,
            zero_copy,
            busy_poll: table.busy_poll.as_ref().is_none_or(|at| at.value),
            frames,
        })
    }

    fn cpus(&self, table: &SourceTable) -> Result<Vec<usize>, ConfigError> {
        let Some(list) = &table.cpus else {
            return Ok(Vec::new());
        };
        if list.value.is_empty() {
            let wrong = Wrong::new(
                "the list is empty",
                "CPU numbers; leave the key out to pin nothing",
            );
            return Err(self.fault(&list.site, "source.cpus", wrong));
        }
        if list.value.len() > MAX_WORKERS {
            let wrong = format!("{} CPUs", list.value.len());
            let wrong = Wrong::new(wrong, format!("at most {MAX_WORKERS}"));
            return Err(self.fault(&list.site, "source.cpus", wrong));
        }
        let mut cpus = Vec::with_capacity(list.value.len());
        for at in &list.value {
            let cpu = self.value(at, "source.cpus", |&cpu: &i64| {
                if !(0..=LARGEST_CPU).contains(&cpu) {
                    let allowed = format!("CPU numbers from 0 to {LARGEST_CPU}");
                    return Err(Wrong::new(format!("{cpu} is not a CPU"), allowed));
                }
                Ok(cpu as usize)
            })?;
            if cpus.contains(&cpu) {
                let wrong = format!("CPU {cpu} stands twice");
                let wrong = Wrong::new(wrong, "each CPU once: a worker has its CPU for itself");
                return Err(self.fault(&at.site, "source.cpus", wrong));
            }
            cpus.push(cpu);
        }
        Ok(cpus)
    }

    fn workers(&self, table: &SourceTable, cpus: &[usize]) -> Result<Option<usize>, ConfigError> {
        let Some(at) = &table.workers else {
            return Ok(None);
        };
        self.value(at, "source.workers", |&workers: &i64| {
            if !(1..=MAX_WORKERS as i64).contains(&workers) {
                let allowed = format!("1 to {MAX_WORKERS}");
                return Err(Wrong::new(
                    format!("{workers} workers are not possible"),
                    allowed,
                ));
            }
            let workers = workers as usize;
            if !cpus.is_empty() && cpus.len() != workers {
                return Err(Wrong::new(
                    format!("{workers} workers on {} CPUs", cpus.len()),
                    format!("one worker for each CPU of `cpus`: {}", cpus.len()),
                ));
            }
            Ok(Some(workers))
        })
    }
}
