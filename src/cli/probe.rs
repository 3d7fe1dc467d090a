//! `xtee probe`: test copies to a target, and what can be known of the way there.

use super::args::ProbeArguments;
use crate::config::validate::target_alone;
use crate::control::probe::{probe as send, Wish};

/// Probes and prints.
///
/// # Errors
/// The URL is wrong, or not every test copy was sent; what was found is printed before.
pub fn probe(arguments: &ProbeArguments) -> anyhow::Result<()> {
    let config = target_alone(&arguments.url)?;
    let wish = Wish {
        count: arguments.count,
        size: arguments.size as usize,
    };
    let report = send(&config, &wish);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    anyhow::ensure!(report.sent_all(), "{}", report.failure());
    Ok(())
}
