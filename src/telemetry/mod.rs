//! Reading what programs and workers counted: one view for `xtee status` and for the final balance.
//!
//! Control plane. Only reads; nothing here slows a worker.

mod dry_run;
pub mod observer;
pub mod sinks;
pub mod status;
