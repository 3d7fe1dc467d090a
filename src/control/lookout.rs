//! Which interfaces a source is on now: by its name or by the default routes, here or in another network
//! namespace.
//!
//! An interface that goes away, comes back under another number or is renamed is followed; what is to be
//! done about it, the source decides. Here changes are heard of; in other namespaces they are looked for,
//! because a socket left there would keep the namespace alive.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::config::settings::{Interface, Namespace};
use crate::host::events::Events;
use crate::host::link::{self, Link};
use crate::host::namespace::{NamespaceError, Place};
use crate::host::netlink::{Netlink, NetlinkError};
use crate::host::route;

/// How often the kernel is asked whatever was heard.
const PERIOD: Duration = Duration::from_millis(250);
/// A route table may be large and change all the time: it is read at most this often.
const ROUTE_PAUSE: Duration = Duration::from_millis(100);

/// What a look came to.
#[derive(Debug)]
pub enum Sight {
    /// The interfaces that the source is to be on; none where there are none now, with the reason.
    Wanted(Vec<Link>, String),
    /// The kernel did not say: all stays as it is.
    Unknown,
}

/// Looks for the interfaces of one source.
pub struct Lookout {
    chosen: Interface,
    /// Where the source's interfaces are.
    pub place: Place,
    netlink: Option<Netlink>,
    events: Option<Events>,
    heard: bool,
    last: Instant,
}

impl std::fmt::Debug for Lookout {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Lookout")
            .field("chosen", &self.chosen)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Lookout {
    /// For a source; here is the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel cannot be asked, or there is no such process.
    pub fn new(chosen: &Interface, namespace: Option<&Namespace>) -> anyhow::Result<Lookout> {
        let place = Place::of(namespace)?;
        let (netlink, events) = if place.is_elsewhere() {
            (None, None)
        } else {
            let routes = *chosen == Interface::DefaultRoute;
            let events = Events::subscribe(routes).context("cannot hear of interfaces")?;
            (Some(Netlink::open()?), Some(events))
        };
        Ok(Lookout {
            chosen: chosen.clone(),
            place,
            netlink,
            events,
            heard: false,
            last: Instant::now(),
        })
    }

    /// Whether it is time to look. To be called often.
    pub fn is_due(&mut self) -> bool {
        if let Some(events) = &mut self.events {
            self.heard |= events.heard();
        }
        let pause = match self.chosen {
            Interface::Name(_) => Duration::ZERO,
            Interface::DefaultRoute => ROUTE_PAUSE,
        };
        let since = self.last.elapsed();
        since >= PERIOD || (self.heard && since >= pause)
    }

    /// Looks. `held` are the numbers of the interfaces that the source is on: one that was renamed is
    /// still wanted, unless another has its name now.
    pub fn look(&mut self, held: &[u32]) -> Sight {
        self.last = Instant::now();
        self.heard = false;
        let chosen = &self.chosen;
        let found = match &mut self.netlink {
            Some(netlink) => find(netlink, chosen, held),
            None => match self
                .place
                .within(|| find(&mut Netlink::open()?, chosen, held))
            {
                Ok(found) => found,
                Err(error) if is_gone(&error) => {
                    return Sight::Wanted(Vec::new(), error.to_string())
                }
                Err(_) => return Sight::Unknown,
            },
        };
        match found {
            Ok(links) => {
                let reason = match (&self.chosen, links.is_empty()) {
                    (_, false) => String::new(),
                    (Interface::Name(name), true) => format!("{name} is gone"),
                    (Interface::DefaultRoute, true) => "there is no default route".to_owned(),
                };
                Sight::Wanted(links, reason)
            }
            Err(_) => Sight::Unknown,
        }
    }
}

/// The namespace's file, or the process, is no more; what stands at a path may also be no namespace now.
fn is_gone(error: &NamespaceError) -> bool {
    matches!(
        error.source.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL | libc::ENOTDIR)
    )
}

fn find(
    netlink: &mut Netlink,
    chosen: &Interface,
    held: &[u32],
) -> Result<Vec<Link>, NetlinkError> {
    let indices = match chosen {
        Interface::Name(name) => {
            if let Some(link) = existing(link::by_name(netlink, name))? {
                return Ok(vec![link]);
            }
            held.to_vec()
        }
        Interface::DefaultRoute => route::default_route_devices(netlink)?,
    };
    let mut links = Vec::new();
    for index in indices {
        links.extend(existing(link::by_index(netlink, index))?);
    }
    Ok(links)
}

fn existing(found: Result<Link, NetlinkError>) -> Result<Option<Link>, NetlinkError> {
    match found {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes note of what is new about an interface that is held; in words, if something is.
pub(super) fn take_note(name: &mut String, up: &mut bool, link: &Link) -> Option<String> {
    if *name != link.name {
        let before = std::mem::replace(name, link.name.clone());
        return Some(format!(
            "{before} is called {} now, and still mirrored",
            link.name
        ));
    }
    if *up != link.up {
        *up = link.up;
        let state = if link.up { "up" } else { "down" };
        return Some(format!("{} is {state}", link.name));
    }
    None
}
