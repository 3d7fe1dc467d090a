//! From a configuration to its plan: gathers the facts that the plan asks for.

use anyhow::Context as _;

use crate::config::plan::{plan, Plan};
use crate::config::settings::{Config, Host};
use crate::host::facts::{gather, TargetQuery};

/// The plan of a configuration on this host, seen from the calling thread's network namespace.
///
/// # Errors
/// A [`crate::config::error::ConfigError`] where the configuration is not possible here, another where
/// the host does not answer.
pub fn plan_here(config: &Config) -> anyhow::Result<Plan> {
    let interfaces: Vec<String> = config
        .sources
        .iter()
        .map(|source| source.interface.clone())
        .collect();
    let targets: Vec<TargetQuery> = config
        .targets
        .iter()
        .map(|target| TargetQuery {
            host: match &target.host {
                Host::Address(address) => address.to_string(),
                Host::Name(name) => name.clone(),
            },
            source: target.source,
            device: target.device.clone(),
        })
        .collect();
    let facts =
        gather(&interfaces, &targets).context("cannot see this host's interfaces and routes")?;
    Ok(plan(config, &facts)?)
}
