//! How copies leave: UDP sockets with GSO, AF_XDP, raw sockets; or how they stay, in a capture or as
//! counts.
//!
//! Data plane. A transmitter takes a batch and accounts for every packet of it: sent, dropped with a
//! reason, or in flight. It never waits and never tries a packet again later. Opening sockets is
//! `open`'s, called by control before the worker starts.

pub mod auto;
mod batch;
pub mod capture;
pub mod discard;
pub mod fragments;
mod in_flight;
pub mod open;
pub mod raw;
mod tally;
pub mod udp;
pub mod wrap;
pub mod xsk;

use std::os::fd::BorrowedFd;

use crate::mirror::path::{PathProblem, PathState};
use crate::reason::Reason;

/// Why AF_XDP cannot send on this path now, if so.
#[must_use]
pub fn path_reason(path: &PathState) -> Option<Reason> {
    path.problem.map(reason_of)
}

/// What a path's problem means for the balance.
#[must_use]
pub fn reason_of(problem: PathProblem) -> Reason {
    match problem {
        PathProblem::NoRoute | PathProblem::Down | PathProblem::NotEthernet => Reason::NoRoute,
        PathProblem::NoNeighbour => Reason::NoNeighbour,
    }
}

/// Why a socket cannot send on this path now, if so. The kernel resolves the next hop for it.
#[must_use]
fn socket_reason(path: &PathState) -> Option<Reason> {
    match path.socket_problem() {
        Some(PathProblem::NoRoute | PathProblem::Down) => Some(Reason::NoRoute),
        _ => None,
    }
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

/// Times that one message is tried again because an ICMP error about an earlier one was reported.
const MOST_RETRIES: u32 = 8;

/// Whether to try a refused message again. A pending ICMP error (the kernel of a passive sensor answers port
/// unreachable) has nothing to do with this message: it costs no copy, however fast they come.
fn retry(socket: BorrowedFd<'_>, errno: i32, retries: &mut u32) -> bool {
    if *retries == MOST_RETRIES || matches!(errno, libc::ENOBUFS | libc::EAGAIN) {
        return false;
    }
    // An ICMP error about the path MTU is reported once, whatever the size of this message; a message that is
    // really too long is refused again.
    if errno == libc::EMSGSIZE && *retries > 0 {
        return false;
    }
    *retries += 1;
    // Reporting an error takes it off the socket, also when there was no room for it in the queue: the
    // first retry needs no proof.
    open::clear_errors(socket) > 0 || *retries == 1
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
