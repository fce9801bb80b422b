//! What the day costs at list prices.

use crate::{constants::Constants, function::Seen};

/// Dollars of the day.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub requests: f64,
    /// GB-seconds of Lambda, starts included.
    pub compute: f64,
    /// Calls of SSM, where its higher throughput is on.
    pub ssm: f64,
    /// What CloudWatch Logs takes in.
    pub logs: f64,
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "counts of a day")]
    pub fn of(constants: &Constants, seen: &Seen) -> Self {
        let runs = seen.runs as f64;
        let ssm = if constants.pays_for_ssm() { seen.ssm.total() as f64 / 1e4 * constants.price_ssm } else { 0.0 };
        Self {
            requests: runs / 1e6 * constants.price_requests,
            compute: seen.billed * constants.memory / 1024.0 * constants.price_gb_second,
            ssm,
            logs: runs * constants.log_bytes / 1e9 * constants.price_logs,
        }
    }

    pub fn total(&self) -> f64 {
        self.requests + self.compute + self.ssm + self.logs
    }
}
