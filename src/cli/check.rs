//! `xtee check`: validate, print the plan and why, change nothing.

use super::args::CheckArguments;
use crate::control::facts::plan_here;

/// Prints the plan.
///
/// # Errors
/// The configuration is wrong or not possible here.
pub fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let config = arguments.config()?;
    let plan = plan_here(&config)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print!("{plan}");
    }
    Ok(())
}
