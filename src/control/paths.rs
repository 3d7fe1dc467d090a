//! Following the route with AF_XDP: a socket is bound to one device, so when the route moves to another,
//! control opens a port there and leaves it in the worker's mailbox.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::outputs::open_port;
use crate::mirror::path::PathState;
use crate::transmit::xsk::{BoundPort, Mailbox};
use crate::xsk::Umem;

/// One AF_XDP transmitter, as control follows it.
#[derive(Debug)]
pub struct Successor {
    path: Arc<ArcSwap<PathState>>,
    umem: Umem,
    mailbox: Mailbox,
    ifindex: u32,
    refused: u32,
}

impl Successor {
    /// For a transmitter that is bound to device `ifindex` now.
    pub fn new(
        path: Arc<ArcSwap<PathState>>,
        umem: Umem,
        mailbox: Mailbox,
        ifindex: u32,
    ) -> Successor {
        Successor {
            path,
            umem,
            mailbox,
            ifindex,
            refused: 0,
        }
    }

    /// Opens a port where the route leads now, if it has moved. Says so, and what is in the way, once.
    pub fn follow(&mut self, queue: u32) -> Option<String> {
        let path = self.path.load();
        if path.problem.is_some() || path.ifindex == 0 || path.ifindex == self.ifindex {
            return None;
        }
        match open_port(&self.umem, &path.device, queue) {
            Ok(port) => {
                self.ifindex = path.ifindex;
                self.refused = 0;
                // One place: a successor that was not taken yet is outdated.
                self.mailbox.force_push(BoundPort {
                    port,
                    ifindex: path.ifindex,
                });
                Some(format!(
                    "the route moved to {}: AF_XDP follows",
                    path.device
                ))
            }
            Err(error) => {
                if self.refused == path.ifindex {
                    return None;
                }
                self.refused = path.ifindex;
                Some(format!(
                    "the route moved to {}, where AF_XDP cannot send: {error}",
                    path.device
                ))
            }
        }
    }
}
