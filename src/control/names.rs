//! Targets that are given by name: the name is resolved again while the mirror runs.
//!
//! Every half minute, at once when a file that resolving goes by has changed, and while a target has no usable
//! path. A resolver may take many seconds to answer, so it is asked on a thread of its own; here only its answers
//! are weighed. The mirror does what comes of it.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;

use crate::config::plan::Plan;
use crate::config::url::host::is_link_local;
use crate::host::facts::addresses_of;
use crate::mirror::path::PathState;

/// Between two resolutions where nothing happens.
const PERIOD: Duration = Duration::from_secs(30);
/// Between two while a target has no usable path.
const IN_TROUBLE: Duration = Duration::from_secs(5);
/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Where names and the way to resolve them stand.
const FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf"];

type Answer = Result<Vec<IpAddr>, String>;

/// What an answer means for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its address is still one of the name's.
    Stay,
    /// It has this address from now on.
    Move(IpAddr),
    /// The name has no address that it could have; it keeps the one it has. In words, why.
    Keep(&'static str),
}

/// Weighs the addresses of a name. A target changes its address, but not the IP version: the plan (headers,
/// sizes, a fixed source) is made for it.
#[must_use]
pub fn decide(present: IpAddr, found: &[IpAddr]) -> Decision {
    let usable = |address: &IpAddr| {
        !is_link_local(*address) && !address.is_unspecified() && !address.is_multicast()
    };
    if found.contains(&present) {
        return Decision::Stay;
    }
    let mut usable = found.iter().copied().filter(usable).peekable();
    if usable.peek().is_none() {
        return Decision::Keep("it has no usable address");
    }
    match usable.find(|address| address.is_ipv4() == present.is_ipv4()) {
        Some(address) => Decision::Move(address),
        None if present.is_ipv4() => {
            Decision::Keep("it has IPv6 addresses only; a restart takes them")
        }
        None => Decision::Keep("it has IPv4 addresses only; a restart takes them"),
    }
}

/// One target.
#[derive(Debug)]
struct Named {
    target: usize,
    url: String,
    name: String,
    address: IpAddr,
    /// What is in the way, and was told.
    told: Option<String>,
    path: Arc<ArcSwap<PathState>>,
}

impl Named {
    /// Takes an answer. Returns the address to move to, and what the operator should know.
    fn take(&mut self, answer: Answer) -> (Option<IpAddr>, Option<String>) {
        let decision = answer.map(|found| decide(self.address, &found));
        let wrong = match decision {
            Ok(Decision::Stay) => None,
            Ok(Decision::Move(address)) => {
                let before = std::mem::replace(&mut self.address, address);
                self.told = None;
                let news = format!(
                    "{}: {} is {address} now, it was {before}: copies go there",
                    self.url, self.name
                );
                return (Some(address), Some(news));
            }
            Ok(Decision::Keep(why)) => Some(why.to_owned()),
            Err(why) => Some(why),
        };
        let news = match (&wrong, &self.told) {
            (None, Some(_)) => Some(format!(
                "{}: {} is resolved again, and still {}",
                self.url, self.name, self.address
            )),
            // Said once, not each time in other words.
            (Some(why), None) => Some(format!(
                "{}: {} is not resolved ({why}): copies go on to {}",
                self.url, self.name, self.address
            )),
            _ => None,
        };
        self.told = wrong;
        (None, news)
    }
}

/// What [`Names::tend`] found out.
#[derive(Debug, Default)]
pub struct Found {
    /// Targets, by their number, and the addresses that they have now.
    pub moves: Vec<(usize, IpAddr)>,
    /// What the operator should know.
    pub news: Vec<String>,
}

/// The named targets of a mirror.
#[derive(Debug)]
pub struct Names {
    list: Vec<Named>,
    /// Asks the thread; it ends when this is dropped, as soon as its resolver lets it. Nobody waits for it.
    ask: Sender<()>,
    answers: Receiver<(usize, Answer)>,
    asked: Option<Instant>,
}

impl Names {
    /// Starts the thread; `None` where no target has a name. Names are resolved in the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn start(plan: &Plan, paths: &[Arc<ArcSwap<PathState>>]) -> anyhow::Result<Option<Names>> {
        let targets = plan.targets.iter().zip(paths).enumerate();
        let list: Vec<Named> = targets
            .filter_map(|(number, (target, path))| {
                Some(Named {
                    target: number,
                    url: target.url.clone(),
                    name: target.name.clone()?,
                    address: target.address,
                    told: None,
                    path: path.clone(),
                })
            })
            .collect();
        if list.is_empty() {
            return Ok(None);
        }
        let names: Vec<String> = list.iter().map(|named| named.name.clone()).collect();
        let (ask, asked) = channel();
        let (answer, answers) = channel();
        std::thread::Builder::new()
            .name("xtee-names".to_owned())
            .spawn(move || resolve(&names, &asked, &answer))
            .context("cannot start the thread that resolves names")?;
        Ok(Some(Names {
            list,
            ask,
            answers,
            asked: None,
        }))
    }

    /// Takes what the resolver has answered. To be called often; never waits.
    pub fn tend(&mut self) -> Found {
        let mut found = Found::default();
        for (number, answer) in self.answers.try_iter() {
            if let Some(named) = self.list.get_mut(number) {
                let (address, news) = named.take(answer);
                found
                    .moves
                    .extend(address.map(|address| (named.target, address)));
                found.news.extend(news);
            }
        }
        let in_trouble = |named: &Named| named.path.load().socket_problem().is_some();
        if !self.list.iter().any(in_trouble) {
            self.asked = None;
        } else if self.asked.is_none_or(|when| when.elapsed() >= IN_TROUBLE) {
            self.asked = Some(Instant::now());
            // It has ended only with a panic, which was reported.
            let _ = self.ask.send(());
        }
        found
    }
}

/// The thread.
fn resolve(names: &[String], asked: &Receiver<()>, answer: &Sender<(usize, Answer)>) {
    let mut stamps = stamps();
    let mut last: Option<Instant> = None;
    // Whoever writes a file may not have finished.
    let mut changed = false;
    loop {
        let wanted = match asked.recv_timeout(LOOK) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let before = std::mem::replace(&mut changed, false);
        let now = self::stamps();
        if now != stamps {
            stamps = now;
            changed = true;
        }
        let due = last.is_none_or(|when| when.elapsed() >= PERIOD);
        if !(wanted || changed || before || due) {
            continue;
        }
        for (number, name) in names.iter().enumerate() {
            if answer.send((number, addresses_of(name))).is_err() {
                return;
            }
        }
        last = Some(Instant::now());
    }
}

/// What tells that a file has changed: its number, its size and the time of its last change.
fn stamps() -> [Option<(u64, u64, i64, i64)>; FILES.len()] {
    FILES.map(|file| {
        let found = std::fs::metadata(file).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| ip(text)).collect()
    }

    #[test]
    fn the_present_address_is_preferred_wherever_it_stands_among_the_answers() {
        let present = ip("203.0.113.2");
        let found = ips(&["203.0.113.9", "2001:db8::1", "203.0.113.2"]);
        assert_eq!(decide(present, &found), Decision::Stay);
    }

    #[test]
    fn else_the_first_usable_one_of_the_same_version_is_taken() {
        let present = ip("203.0.113.2");
        let found = ips(&["2001:db8::1", "0.0.0.0", "224.0.0.1", "203.0.113.9"]);
        let Decision::Move(address) = decide(present, &found) else {
            panic!("{:?}", decide(present, &found));
        };
        assert_eq!(address, ip("203.0.113.9"));
        let found = ips(&["203.0.113.9", "fe80::1", "2001:db8::2"]);
        let moved = decide(ip("2001:db8::1"), &found);
        assert_eq!(moved, Decision::Move(ip("2001:db8::2")));
    }

    #[test]
    fn no_address_and_another_version_change_nothing() {
        let present = ip("203.0.113.2");
        for found in [&[][..], &["fe80::1"], &["2001:db8::1"], &["0.0.0.0"]] {
            let decision = decide(present, &ips(found));
            assert!(
                matches!(decision, Decision::Keep(_)),
                "{found:?}: {decision:?}"
            );
        }
        let six = decide(ip("2001:db8::1"), &ips(&["203.0.113.2"]));
        assert!(matches!(six, Decision::Keep(why) if why.contains("IPv4")));
    }

    #[test]
    fn trouble_and_its_end_are_told_once() {
        let address = ip("203.0.113.2");
        let mut named = Named {
            target: 0,
            url: "vxlan://sensor?vni=7".to_owned(),
            name: "sensor".to_owned(),
            address,
            told: None,
            path: Arc::new(ArcSwap::from_pointee(PathState::without_route(address))),
        };
        assert_eq!(named.take(Ok(vec![address])), (None, None));
        let (moved, news) = named.take(Err("no answer".to_owned()));
        assert_eq!(moved, None);
        let news = news.unwrap();
        assert!(
            news.contains("no answer") && news.contains("go on to 203.0.113.2"),
            "{news}"
        );
        assert_eq!(named.take(Err("still no answer".to_owned())), (None, None));
        assert_eq!(named.take(Ok(Vec::new())), (None, None));
        let (_, news) = named.take(Ok(vec![address]));
        assert!(news.unwrap().contains("resolved again"));
        let (moved, news) = named.take(Ok(ips(&["203.0.113.9"])));
        assert_eq!(moved, Some(ip("203.0.113.9")));
        let news = news.unwrap();
        assert!(
            news.contains("203.0.113.9 now, it was 203.0.113.2"),
            "{news}"
        );
        assert_eq!(named.take(Ok(ips(&["203.0.113.9"]))), (None, None));
    }
}
