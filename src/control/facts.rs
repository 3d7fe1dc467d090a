//! From a configuration to its plan: gathers the facts that the plan asks for.

use std::collections::BTreeSet;

use anyhow::Context as _;

use crate::config::facts::SinkFacts;
use crate::config::plan::{plan, Plan};
use crate::config::settings::{Config, Host, Interface, Namespace};
use crate::config::sink::SinkKind;
use crate::host::facts::{capture_place, gather, gather_elsewhere, TargetQuery};

/// The plan of a configuration on this host, seen from the calling thread's network namespace.
///
/// # Errors
/// A [`crate::config::error::ConfigError`] where the configuration is not possible here, another where
/// the host does not answer.
pub fn plan_here(config: &Config) -> anyhow::Result<Plan> {
    let interfaces = named(config, None);
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
    let mut facts =
        gather(&interfaces, &targets).context("cannot see this host's interfaces and routes")?;
    let elsewhere: BTreeSet<&Namespace> = config
        .sources
        .iter()
        .filter_map(|source| source.namespace.as_ref())
        .collect();
    facts.elsewhere = elsewhere
        .into_iter()
        .map(|namespace| gather_elsewhere(namespace, &named(config, Some(namespace))))
        .collect();
    facts.sinks = config
        .sinks
        .iter()
        .map(|sink| match &sink.kind {
            SinkKind::File(path) => capture_place(path),
            SinkKind::StandardOutput | SinkKind::DryRun => SinkFacts::default(),
        })
        .collect();
    Ok(plan(config, &facts)?)
}

/// The interfaces of a namespace that sources name.
fn named(config: &Config, namespace: Option<&Namespace>) -> Vec<String> {
    config
        .sources
        .iter()
        .filter(|source| source.namespace.as_ref() == namespace)
        .filter_map(|source| match &source.interface {
            Interface::Name(name) => Some(name.clone()),
            Interface::DefaultRoute => None,
        })
        .collect()
}
