//! Whether the sources' interfaces are still there: one that was deleted, or moved to another network
//! namespace, takes our programs with it, and a mirror that sees nothing must not look alive.
//!
//! An interface that is merely down keeps its programs, and is left alone.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::config::plan::{Capture, Plan};
use crate::host::link;
use crate::host::netlink::Netlink;

/// How often the kernel is asked.
const PERIOD: Duration = Duration::from_millis(500);

/// Looks for the interfaces of a plan in the network namespace that it was made in.
pub struct Presence {
    netlink: Netlink,
    sources: Vec<(String, u32)>,
    next: Instant,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Presence")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Presence {
    /// For the sources of a plan.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn new(plan: &Plan) -> anyhow::Result<Presence> {
        let sources = plan
            .sources
            .iter()
            .filter(|source| matches!(source.capture, Capture::Span { .. }));
        Ok(Presence {
            netlink: Netlink::open()?,
            sources: sources
                .map(|source| (source.name.clone(), source.ifindex))
                .collect(),
            next: Instant::now() + PERIOD,
        })
    }

    /// To be called often; asks the kernel now and then.
    ///
    /// # Errors
    /// An interface is gone.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + PERIOD;
        for (name, ifindex) in &self.sources {
            let found = link::by_index(&mut self.netlink, *ifindex);
            let gone = found.is_err_and(|error| error.errno() == Some(libc::ENODEV));
            ensure!(
                !gone,
                "{name}: the interface is gone (deleted, or moved to another network namespace); the mirror stops"
            );
        }
        Ok(())
    }
}
