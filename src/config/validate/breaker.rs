//! `[breaker]`: when copies are shed because production goes first.

use super::Check;
use crate::config::error::ConfigError;
use crate::config::file::{At, BreakerTable, Value};
use crate::config::settings::Breaker;
use crate::config::values::{bit_rate, packet_rate, percentage, Wrong};

impl Check<'_> {
    pub(super) fn breaker(&self, table: Option<&At<BreakerTable>>) -> Result<Breaker, ConfigError> {
        let Some(At { value: table, .. }) = table else {
            return Ok(Breaker::default());
        };
        Ok(Breaker {
            budget: self.threshold(&table.budget, "breaker.budget", bit_rate)?,
            budget_packets: self.threshold(
                &table.budget_packets,
                "breaker.budget_packets",
                packet_rate,
            )?,
            load: self.threshold(&table.load, "breaker.load", percentage)?,
            allowances: table.allowances.as_ref().is_none_or(|at| at.value),
        })
    }

    fn threshold<T>(
        &self,
        at: &Option<At<Value>>,
        key: &str,
        read: fn(&str) -> Result<T, Wrong>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(at) = at else {
            return Ok(None);
        };
        self.value(at, key, |value: &Value| read(&value.to_string()).map(Some))
    }
}
