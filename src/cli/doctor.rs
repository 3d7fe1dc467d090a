//! `xtee doctor`: what this host can do, what stands in the way, how to mend it.

use super::args::DoctorArguments;
use crate::control::doctor;

/// Prints the report.
///
/// # Errors
/// The report cannot be printed.
pub fn doctor(arguments: &DoctorArguments) -> anyhow::Result<()> {
    let report = doctor::doctor(&arguments.interfaces);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
