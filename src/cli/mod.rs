//! The command line: one file a subcommand. Control plane.

pub mod args;
pub mod check;
pub mod doctor;
pub mod loss;
pub mod probe;
pub mod run;
pub mod status;

use crate::config::error::ConfigError;
use args::{Arguments, Command};

/// Carries a command out.
///
/// # Errors
/// What went wrong; [`exit_code`] says with which code to end.
pub fn execute(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Run(run) => run::run(&crate::config::load(&run.config)?),
        Command::Mirror(mirror) => run::run(&mirror.config()?),
        Command::Check(check) => check::check(check),
        Command::Status(status) => status::status(status),
        Command::Probe(probe) => probe::probe(probe),
        Command::Doctor(doctor) => doctor::doctor(doctor),
        Command::Loss(arguments) => loss::loss(arguments),
    }
}

/// 2 for a wrong configuration or wrong arguments, 1 for everything else.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<ConfigError>()) {
        ConfigError::EXIT_CODE
    } else {
        1
    }
}
