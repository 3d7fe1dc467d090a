//! Starting a worker's thread: named, pinned before its first packet.

use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context as _;

use crate::host::cpu::pin_current_thread;

/// Starts `run` on a thread of its own, pinned to `cpu` if given.
///
/// # Errors
/// The thread could not be made, or not be pinned: what the user demanded fails loudly.
pub fn start<T: Default + Send + 'static>(
    name: &str,
    cpu: Option<usize>,
    run: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    let (tell, pinned) = mpsc::channel();
    let handle = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let result = cpu.map_or(Ok(()), pin_current_thread);
            let failed = result.is_err();
            // The starter waits for this message.
            let _ = tell.send(result);
            match failed {
                true => T::default(),
                false => run(),
            }
        })
        .with_context(|| format!("cannot start the thread {name}"))?;
    pinned
        .recv()
        .context("the worker's thread ended at once")?
        .with_context(|| format!("cannot pin {name}"))?;
    Ok(handle)
}
