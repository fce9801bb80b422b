//! The metrics: a line of JSON that CloudWatch Logs turns into metrics.
//!
//! Shape: <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.
//! Each new value of a dimension is a metric that costs money, so only a queue of the stack is a value.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::log;

/// One value of a metric.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    #[serde(skip)]
    pub(super) value: u128,
    #[serde(skip)]
    pub(super) dimensions: Dimensions,
}

/// Sets of dimensions: the metric has a value for each.
type Dimensions = &'static [&'static [&'static str]];

pub(super) const BY_QUEUE: Dimensions = &[&["FunctionName", "Queue"]];
const BY_FUNCTION: Dimensions = &[&["FunctionName"]];
/// Of all queues, too, for the alarms.
pub(super) const BY_BOTH: Dimensions = &[&["FunctionName", "Queue"], &["FunctionName"]];

impl Metric {
    pub(super) const fn one(name: &'static str) -> Self {
        Self { name, unit: "Count", value: 1, dimensions: BY_QUEUE }
    }

    pub(super) const fn of_function(name: &'static str, value: u128) -> Self {
        Self { name, unit: "Count", value, dimensions: BY_FUNCTION }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line<'a> {
    #[serde(rename = "_aws")]
    aws: Metadata<'a>,
    function_name: &'a str,
    queue: &'a str,
    #[serde(flatten, serialize_with = "values")]
    values: &'a [Metric],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata<'a> {
    timestamp: u128,
    cloud_watch_metrics: Vec<Directive<'a>>,
}

/// Metrics of the same dimensions.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive<'a> {
    namespace: &'static str,
    dimensions: Dimensions,
    metrics: &'a [Metric],
}

fn values<S: Serializer>(metrics: &&[Metric], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metrics.iter().map(|metric| (metric.name, metric.value)))
}

pub(super) fn line(metrics: &[Metric], queue: Option<&str>, function_name: &str, now: SystemTime) -> Vec<u8> {
    let directives = metrics.chunk_by(|one, other| one.dimensions == other.dimensions).map(|metrics| Directive {
        namespace: "AgentScheduler",
        dimensions: metrics[0].dimensions,
        metrics,
    });
    let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let aws = Metadata { timestamp, cloud_watch_metrics: directives.collect() };
    let line = Line { aws, function_name, queue: queue.unwrap_or("none"), values: metrics };
    // Room for any line with names of usual length.
    let mut json = Vec::with_capacity(512);
    serde_json::to_writer(&mut json, &line).expect("numbers and texts are JSON");
    json.push(b'\n');
    json
}

pub(super) fn write(metrics: &[Metric], queue: Option<&str>, function_name: &str, now: SystemTime) {
    if metrics.is_empty() {
        return;
    }
    log::print(&line(metrics, queue, function_name, now));
}
