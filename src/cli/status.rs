//! `xtee status`: the counters of the running mirror.

use super::args::StatusArguments;
use crate::control::server::ask;

/// Prints the status.
///
/// # Errors
/// No xtee answers.
pub fn status(arguments: &StatusArguments) -> anyhow::Result<()> {
    let status = ask(&arguments.socket)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{status}");
    }
    Ok(())
}
