//! `xtee run` and `xtee mirror`: start, look after, stop, balance.

use std::io::Write;
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::settings::Config;
use crate::control::facts::plan_here;
use crate::control::mirror::Mirror;
use crate::control::privilege;
use crate::control::server::{Door, Server};

/// How often the mirror is looked after.
const TEND: Duration = Duration::from_millis(20);

/// Mirrors until SIGINT or SIGTERM.
///
/// # Errors
/// The configuration is not possible here, something could not be started, or the balance is off.
pub fn run(config: &Config) -> anyhow::Result<()> {
    // Before anything is attached: from here on a signal ends the mirror in order.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen to signals")?;
    let plan = plan_here(config)?;
    // Where the standard output is a capture, nothing else may be written to it.
    let mut out: Box<dyn Write> = match plan.captures_to_standard_output() {
        true => Box::new(std::io::stderr()),
        false => Box::new(std::io::stdout()),
    };
    write!(out, "{plan}")?;
    privilege::check(&plan)?;
    // Also before: a socket that cannot be had must not cost a moment of mirroring.
    let door = Door::open(&plan.control_socket)?;
    let mut mirror = Mirror::start(config, &plan)?;
    let server = Server::start(door, mirror.observer())?;
    for note in &mirror.notes {
        tracing::warn!("{note}");
    }
    for source in &mirror.observer().status()?.sources {
        writeln!(out, "mirroring {} ({})", source.name, source.mode)?;
    }
    out.flush()?;

    let (tell, told) = channel();
    let handle = signals.handle();
    let listener = std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            // The main thread waits for this; when it is gone, there is nobody to tell.
            let _ = tell.send(());
        }
    });
    let outcome = look_after(&mut mirror, &told);
    handle.close();
    let _ = listener.join();
    drop(server);

    let status = mirror.stop()?;
    write!(out, "{status}")?;
    out.flush()?;
    outcome?;
    let imbalances = status.imbalances();
    anyhow::ensure!(
        imbalances.is_empty(),
        "the balance is off: {}",
        imbalances.join("; ")
    );
    writeln!(out, "balance   holds: every packet is accounted for")?;
    Ok(())
}

fn look_after(mirror: &mut Mirror, told: &std::sync::mpsc::Receiver<()>) -> anyhow::Result<()> {
    loop {
        match told.recv_timeout(TEND) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        for news in mirror.tend()? {
            tracing::warn!("{news}");
        }
        if mirror.is_pointless() {
            return Ok(());
        }
    }
}
