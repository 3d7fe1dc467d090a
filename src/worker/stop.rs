//! How control ends a worker: it says so, the worker drains what is there and returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Shared between control and the workers of one mirror.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the workers to drain and return. The source must have been detached before.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the worker should return once its source is empty.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
