//! Following the route with AF_XDP: a socket is bound to one device, so when the route moves to another,
//! control opens a port there, hands it to the worker, and closes the one that the worker leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::outputs::open_port;
use crate::mirror::path::PathState;
use crate::transmit::xsk::{BoundPort, Exchange};
use crate::xsk::{TxPort, Umem, XskError};

/// After a refusal the device is asked again at most this often: asking may take half a second.
const RETRY: Duration = Duration::from_secs(1);

/// One AF_XDP transmitter, as control follows it.
#[derive(Debug)]
pub struct Successor {
    path: Arc<ArcSwap<PathState>>,
    umem: Umem,
    exchange: Exchange,
    /// Its number among all transmitters, and its queue where that is free.
    queue: u32,
    /// The device that the worker will be bound to once it has taken its successor.
    ifindex: u32,
    /// The device before that.
    before: u32,
    /// The first device.
    first: u32,
    refused: Option<(u32, Instant)>,
}

impl Successor {
    /// For a transmitter that is bound to `queue` of device `ifindex` now.
    pub fn new(
        path: Arc<ArcSwap<PathState>>,
        umem: Umem,
        exchange: Exchange,
        queue: u32,
        ifindex: u32,
    ) -> Successor {
        Successor {
            path,
            umem,
            exchange,
            queue,
            ifindex,
            before: ifindex,
            first: ifindex,
            refused: None,
        }
    }

    /// Whether its frames are of this umem.
    pub fn sends_from(&self, umem: &Umem) -> bool {
        self.umem.is(umem)
    }

    /// The device and the queue that it was opened on first.
    pub fn opened_at(&self) -> (u32, u32) {
        (self.first, self.queue)
    }

    /// Opens a port where the route leads now, if it has moved; at most `transmitters` queues are tried.
    /// Says so, and what is in the way, once.
    pub fn follow(&mut self, transmitters: u32) -> Option<String> {
        // What the worker has left closes here: closing waits for the kernel, and the worker must not.
        drop(self.exchange.left.pop());
        let path = self.path.load();
        if path.problem.is_some() || path.ifindex == 0 || path.ifindex == self.ifindex {
            return None;
        }
        // A worker without traffic has not taken its successor, which is outdated now.
        if self.exchange.successor.pop().is_some() {
            self.ifindex = self.before;
            if path.ifindex == self.ifindex {
                return None;
            }
        }
        if let Some((device, when)) = self.refused {
            if device == path.ifindex && when.elapsed() < RETRY {
                return None;
            }
        }
        match self.open(&path.device, transmitters) {
            Ok(port) => {
                self.before = self.ifindex;
                self.ifindex = path.ifindex;
                self.refused = None;
                let bound = BoundPort {
                    port,
                    ifindex: path.ifindex,
                };
                // Empty: only control fills it, and it has just been emptied.
                drop(self.exchange.successor.force_push(bound));
                Some(format!(
                    "the route moved to {}: AF_XDP follows",
                    path.device
                ))
            }
            Err(error) => {
                let told = self
                    .refused
                    .is_some_and(|(device, _)| device == path.ifindex);
                self.refused = Some((path.ifindex, Instant::now()));
                (!told).then(|| {
                    format!(
                        "the route moved to {}, where AF_XDP cannot send: {error}",
                        path.device
                    )
                })
            }
        }
    }

    /// A queue has one owner, and other transmitters may have come to this device before: then it is
    /// another queue.
    fn open(&self, device: &str, transmitters: u32) -> Result<TxPort, XskError> {
        let refusal = match open_port(&self.umem, device, self.queue) {
            Ok(port) => return Ok(port),
            Err(refusal) => refusal,
        };
        (0..transmitters)
            .filter(|queue| *queue != self.queue)
            .find_map(|queue| open_port(&self.umem, device, queue).ok())
            .ok_or(refusal)
    }
}
