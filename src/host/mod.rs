//! What the machine has: interfaces, queues, offloads, routes, neighbours, CPUs, privileges, and
//! what its kernel can do.
//!
//! Control plane: everything here may block, allocate and fail. It only looks, with three exceptions
//! that are marked where they are: `neighbour` asks the kernel to resolve a next hop, `cpu` pins
//! the calling thread, and `notrack` makes a table that goes away with the process. No worker may call
//! it; the layering test checks that the data plane does not import it. `unsafe` is allowed here for the system calls that std does not offer.

mod bpf_syscall;
pub mod clock;
pub mod cpu;
pub mod ethtool;
pub mod events;
pub mod facts;
pub mod features;
pub mod hooks;
pub mod icmp;
pub mod limits;
pub mod link;
pub mod load;
pub mod namespace;
pub mod neighbour;
pub mod netdev;
pub mod netlink;
pub mod notrack;
pub mod path_mtu;
pub mod privilege;
pub mod route;
mod sys;
pub use sys::wait_writable;
#[cfg(test)]
mod tests;
pub mod walk;
pub mod watch;
