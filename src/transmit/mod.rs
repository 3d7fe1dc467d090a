//! How copies leave: UDP sockets with GSO, AF_XDP, raw sockets.
//!
//! Data plane. A transmitter takes a batch and accounts for every packet of it: sent, dropped with a
//! reason, or in flight. It never waits and never tries a packet again later. Opening sockets is
//! `open`'s, called by control before the worker starts.

mod batch;
pub mod open;
pub mod raw;
pub mod udp;
pub mod xsk;

use crate::mirror::path::{PathProblem, PathState};
use crate::reason::Reason;

/// Why nothing can be sent on this path now, if so.
#[must_use]
pub fn path_reason(path: &PathState) -> Option<Reason> {
    path.problem.map(|problem| match problem {
        PathProblem::NoRoute | PathProblem::Down | PathProblem::NotEthernet => Reason::NoRoute,
        PathProblem::NoNeighbour => Reason::NoNeighbour,
    })
}

/// What an errno of a send means for the balance.
#[must_use]
pub fn send_reason(errno: i32) -> Reason {
    match errno {
        libc::EMSGSIZE => Reason::Oversize,
        libc::ENOBUFS | libc::EAGAIN | libc::ENOMEM => Reason::Congested,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::ENODEV | libc::ENXIO => {
            Reason::NoRoute
        }
        _ => Reason::SendError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_have_the_reason_an_operator_expects() {
        assert_eq!(send_reason(libc::EMSGSIZE), Reason::Oversize);
        assert_eq!(send_reason(libc::ENOBUFS), Reason::Congested);
        assert_eq!(send_reason(libc::EHOSTUNREACH), Reason::NoRoute);
        assert_eq!(send_reason(libc::EPERM), Reason::SendError);
    }
}
