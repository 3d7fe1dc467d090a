//! A tap's programs on the interfaces that it is on now: attached where one appears, taken off where it is
//! not wanted any more. The loaded programs, their rings and counters stay.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Context as _};

use super::explain::explain;
use super::lock::{lock, InterfaceLock};
use super::lookout::{take_note, Lookout, Sight};
use crate::bpf::tap::{Hold, Tap, TapPrograms};
use crate::config::plan::{Attach, SourcePlan};
use crate::host::hooks::{self, Attached, Hook, Hooks};
use crate::host::link::Link;
use crate::host::namespace;
use crate::host::netlink::Netlink;
use crate::packet::link::LinkType;
use crate::telemetry::observer::{SourceNow, SourceState};

/// An interface that is tapped.
#[derive(Debug)]
struct Held {
    name: String,
    up: bool,
    hold: Hold,
    _lock: InterfaceLock,
}

/// Everything that a tap holds.
#[derive(Debug)]
pub struct Holds {
    attach: Attach,
    links: Vec<LinkType>,
    lookout: Lookout,
    held: BTreeMap<u32, Held>,
    /// Taken before the programs are attached the first time.
    locks: BTreeMap<u32, InterfaceLock>,
    refused: String,
}

/// Of what its packets begin with.
fn link_type(link: &Link) -> LinkType {
    match link.ethernet {
        true => LinkType::Ethernet,
        false => LinkType::Ip,
    }
}

impl Holds {
    /// Takes the locks of the interfaces that are there; attaches nothing yet.
    ///
    /// # Errors
    /// None is there, or another xtee has one.
    pub fn new(plan: &SourcePlan, attach: Attach) -> anyhow::Result<Holds> {
        let lookout = Lookout::new(&plan.chosen, plan.namespace.as_ref())?;
        let mut holds = Holds {
            attach,
            links: plan.links.clone(),
            lookout,
            held: BTreeMap::new(),
            locks: BTreeMap::new(),
            refused: String::new(),
        };
        for link in holds.wanted()? {
            let lock = holds.lock(&link)?;
            holds.locks.insert(link.index, lock);
        }
        Ok(holds)
    }

    fn wanted(&mut self) -> anyhow::Result<Vec<Link>> {
        match self.lookout.look(&[]) {
            Sight::Wanted(links, reason) => {
                ensure!(!links.is_empty(), "{reason}");
                Ok(links)
            }
            Sight::Unknown => bail!("the kernel does not say which interfaces there are"),
        }
    }

    fn lock(&self, link: &Link) -> anyhow::Result<InterfaceLock> {
        let there = self.lookout.place.within(namespace::number)?;
        lock(&link.name, link.index, there)
    }

    /// Attaches to every interface that is there.
    ///
    /// # Errors
    /// The kernel refused one.
    pub fn attach_all(&mut self, program: &Tap) -> anyhow::Result<SourceNow> {
        for link in self.wanted()? {
            self.attach(program, &link)?;
        }
        Ok(self.now(""))
    }

    fn attach(&mut self, program: &Tap, link: &Link) -> anyhow::Result<()> {
        let begins = link_type(link);
        ensure!(
            self.links.contains(&begins),
            "{} is of another kind than at the start (with or without Ethernet): xtee has to be started anew",
            link.name
        );
        let lock = match self.locks.remove(&link.index) {
            Some(lock) => lock,
            None => self.lock(link)?,
        };
        let programs = program.programs(begins)?;
        let how = self.attach;
        let hold = self
            .lookout
            .place
            .within(|| attach_there(&programs, how, link))??;
        self.held.insert(
            link.index,
            Held {
                name: link.name.clone(),
                up: link.up,
                hold,
                _lock: lock,
            },
        );
        Ok(())
    }

    /// To be called often: looks now and then, and follows. Returns the state where it was looked, and what
    /// the operator should know.
    pub fn follow(&mut self, program: &Tap) -> Option<(SourceNow, Vec<String>)> {
        if !self.lookout.is_due() {
            return None;
        }
        let held: Vec<u32> = self.held.keys().copied().collect();
        let Sight::Wanted(links, mut reason) = self.lookout.look(&held) else {
            return None;
        };
        let mut news = Vec::new();
        let before: Vec<String> = self.names();
        self.let_go(|index, hold| {
            links.iter().any(|link| link.index == index) && hold.is_attached()
        });
        let mut refused = String::new();
        for link in &links {
            if let Some(held) = self.held.get_mut(&link.index) {
                news.extend(held.changed(link));
                continue;
            }
            match self.attach(program, link) {
                Ok(()) => news.push(format!(
                    "{} (interface {}) is there and mirrored{}",
                    link.name,
                    link.index,
                    if link.up { "" } else { ", and down" }
                )),
                Err(error) => refused = explain(&error),
            }
        }
        let names = self.names();
        let gone: Vec<_> = before.iter().filter(|name| !names.contains(name)).collect();
        if names.is_empty() && !before.is_empty() {
            let why = if reason.is_empty() {
                "it was lost"
            } else {
                &reason
            };
            news.push(format!("{why}; waiting until it is there again"));
        } else if news.is_empty() {
            news.extend(gone.into_iter().map(|name| format!("{name} is left")));
        }
        if !refused.is_empty() {
            if refused != self.refused {
                news.push(format!("{refused}; trying again"));
            }
            reason.clone_from(&refused);
        }
        self.refused = refused;
        Some((self.now(&reason), news))
    }

    fn names(&self) -> Vec<String> {
        self.held.values().map(|held| held.name.clone()).collect()
    }

    fn now(&self, problem: &str) -> SourceNow {
        let state = if self.held.is_empty() {
            SourceState::Waiting
        } else if self.held.values().any(|held| held.up) {
            SourceState::Present
        } else {
            SourceState::Down
        };
        SourceNow {
            mode: self.attach.to_string(),
            state,
            interfaces: self.names(),
            problem: problem.to_owned(),
        }
    }

    /// Takes the programs off where `stays` says no.
    fn let_go(&mut self, mut stays: impl FnMut(u32, &Hold) -> bool) {
        let gone: Vec<u32> = self
            .held
            .iter()
            .filter(|(index, held)| !stays(**index, &held.hold))
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            if let Some(held) = self.held.remove(&index) {
                // A filter of clsact is found in the interface's namespace only. Where that is gone,
                // so is the filter.
                let _ = self.lookout.place.within(move || drop(held.hold));
            }
        }
    }

    /// Takes the programs off every interface.
    pub fn release(&mut self) {
        self.let_go(|_, _| false);
        self.locks.clear();
    }
}

impl Held {
    /// Takes note of what is new about the interface.
    fn changed(&mut self, link: &Link) -> Option<String> {
        take_note(&mut self.name, &mut self.up, link)
    }
}

/// On a thread in the interface's namespace.
fn attach_there(programs: &TapPrograms<'_>, how: Attach, link: &Link) -> anyhow::Result<Hold> {
    let name = &link.name;
    let hooks = hooks_of(link).with_context(|| format!("cannot look at {name}"))?;
    match how {
        Attach::Tcx => {
            // A link goes away with its process, so this one's process lives, in a network namespace from
            // which our lock is not seen.
            ensure!(
                !hooks.attached.iter().any(is_our_link),
                "another xtee, of another network namespace, mirrors {name} already"
            );
            // Filters of a tap that was killed would go on copying into a ring that nobody reads.
            // No living xtee has them: the interface's lock is ours.
            if hooks.attached.iter().any(is_our_filter) {
                programs.remove_stale_filters(link.index);
                tracing::info!("removed the clsact filters that an xtee left on {name}");
            }
            Ok(programs.attach_tcx(link.index, name)?)
        }
        Attach::Clsact => {
            if !hooks.clsact {
                tracing::warn!(
                    "making the clsact qdisc of {name}: the kernel drops what is sent in that moment. It \
                     stays, so that this happens once; `tc qdisc add dev {name} clsact` at boot avoids it"
                );
            }
            Ok(programs.attach_clsact(link.index, name)?)
        }
    }
}

fn hooks_of(link: &Link) -> anyhow::Result<Hooks> {
    Ok(hooks::on(&mut Netlink::open()?, link)?)
}

fn is_our_filter(attached: &Attached) -> bool {
    attached.ours() && matches!(attached.hook, Hook::ClsactIngress | Hook::ClsactEgress)
}

fn is_our_link(attached: &Attached) -> bool {
    attached.ours() && matches!(attached.hook, Hook::TcxIngress | Hook::TcxEgress)
}
