//! The life of a mirror: plan → load → open → attach → watch → drain. Control plane: may block,
//! allocate, lock and log; touches no packet.

mod capture;
pub mod doctor;
pub mod explain;
pub mod facts;
mod guard;
mod hold;
mod lock;
mod lookout;
pub mod mirror;
mod names;
mod outputs;
mod paths;
pub mod privilege;
pub mod probe;
pub mod server;
mod shedding;
mod sinks;
mod sockets;
mod span;
mod tap;
mod targets;
mod thread;
mod untracked;
