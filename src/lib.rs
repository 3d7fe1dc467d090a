//! xtee mirrors the traffic of a cloud instance or an appliance port to a remote NDR.

pub mod bpf;
pub mod cli;
pub mod config;
pub mod control;
pub mod host;
pub mod loss;
pub mod mirror;
pub mod packet;
pub mod reason;
pub mod source;
pub mod telemetry;
pub mod transmit;
pub mod worker;
pub mod xsk;
