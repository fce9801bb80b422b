//! What CloudWatch counts: a line of JSON for each event, of which CloudWatch Logs makes metrics.
//!
//! Shape: <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.
//! Each new value of a dimension is a metric that somebody pays for, so a queue is only ever named if it is ours.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

/// What became of an event, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// `JobsCreated`, and `TimeToJob` if it is known when the job was announced.
    Created {
        /// The event's time.
        announced: Option<SystemTime>,
    },
    /// `JobsExisting`.
    Existing,
    /// `JobsIgnored`.
    Ignored,
    /// `JobsIgnored`, and `JobsUnserved` for all queues in one: nobody will ever serve it, and one alarm shall tell.
    Unserved,
    /// `JobsFailed`.
    Failed,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line<'a> {
    #[serde(rename = "_aws")]
    aws: Metadata<'a>,
    function_name: &'a str,
    queue: &'a str,
    #[serde(flatten, serialize_with = "values")]
    values: &'a [Directive<'a>],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata<'a> {
    timestamp: u128,
    cloud_watch_metrics: &'a [Directive<'a>],
}

/// Which of the line's values are metrics, and which of its texts their dimensions.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Directive<'a> {
    namespace: &'static str,
    dimensions: [&'static [&'static str]; 1],
    metrics: &'a [Metric],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metric {
    name: &'static str,
    unit: &'static str,
    #[serde(skip)]
    value: u128,
}

/// The line, with its end.
pub fn line(count: Count, queue: Option<&str>, function_name: &str, now: SystemTime) -> Vec<u8> {
    let of_queue: &[Metric] = match count {
        Count::Created { announced: Some(time) } => {
            let value = milliseconds(time, now);
            &[one("JobsCreated"), Metric { name: "TimeToJob", unit: "Milliseconds", value }]
        }
        Count::Created { announced: None } => &[one("JobsCreated")],
        Count::Existing => &[one("JobsExisting")],
        Count::Ignored | Count::Unserved => &[one("JobsIgnored")],
        Count::Failed => &[one("JobsFailed")],
    };
    let directives = [
        Directive::new(&["FunctionName", "Queue"], of_queue),
        Directive::new(&["FunctionName"], const { &[one("JobsUnserved")] }),
    ];
    let directives = if count == Count::Unserved { &directives[..] } else { &directives[..1] };
    let timestamp = milliseconds(UNIX_EPOCH, now);
    let aws = Metadata { timestamp, cloud_watch_metrics: directives };
    let line = Line { aws, function_name, queue: queue.unwrap_or("none"), values: directives };
    // Room for any line with names of usual length.
    let mut json = Vec::with_capacity(512);
    serde_json::to_writer(&mut json, &line).expect("numbers and texts are JSON");
    json.push(b'\n');
    json
}

impl<'a> Directive<'a> {
    fn new(dimensions: &'static [&'static str], metrics: &'a [Metric]) -> Self {
        Self { namespace: "AgentScheduler", dimensions: [dimensions], metrics }
    }
}

const fn one(name: &'static str) -> Metric {
    Metric { name, unit: "Count", value: 1 }
}

/// From one time to another; nothing if the clock says that the other one was earlier.
fn milliseconds(from: SystemTime, to: SystemTime) -> u128 {
    to.duration_since(from).unwrap_or_default().as_millis()
}

fn values<S: Serializer>(directives: &&[Directive], serializer: S) -> Result<S::Ok, S::Error> {
    let metrics = directives.iter().flat_map(|directive| directive.metrics);
    serializer.collect_map(metrics.map(|metric| (metric.name, metric.value)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 2026-01-15T10:00:05.081Z
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_768_471_205_081)
    }

    fn text(count: Count, queue: Option<&str>) -> String {
        String::from_utf8(line(count, queue, "agent-scheduler", now())).unwrap()
    }

    #[test]
    fn a_line_is_as_cloudwatch_specifies_it() {
        let announced = Some(now() - Duration::from_millis(81));
        let expected = concat!(
            r#"{"_aws":{"Timestamp":1768471205081,"CloudWatchMetrics":[{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName","Queue"]],"#,
            r#""Metrics":[{"Name":"JobsCreated","Unit":"Count"},{"Name":"TimeToJob","Unit":"Milliseconds"}]}]},"#,
            r#""FunctionName":"agent-scheduler","Queue":"default","JobsCreated":1,"TimeToJob":81}"#,
            "\n"
        );
        assert_eq!(text(Count::Created { announced }, Some("default")), expected);
    }

    #[test]
    fn a_tag_that_nobody_has_is_counted_for_all_queues_too() {
        let expected = concat!(
            r#"{"_aws":{"Timestamp":1768471205081,"CloudWatchMetrics":[{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName","Queue"]],"Metrics":[{"Name":"JobsIgnored","Unit":"Count"}]},"#,
            r#"{"Namespace":"AgentScheduler","#,
            r#""Dimensions":[["FunctionName"]],"Metrics":[{"Name":"JobsUnserved","Unit":"Count"}]}]},"#,
            r#""FunctionName":"agent-scheduler","Queue":"gpu","JobsIgnored":1,"JobsUnserved":1}"#,
            "\n"
        );
        assert_eq!(text(Count::Unserved, Some("gpu")), expected);
    }

    #[test]
    fn each_outcome_has_a_metric_of_its_own() {
        let behind = Some(now() + Duration::from_secs(3));
        let cases = [
            (Count::Created { announced: None }, r#""JobsCreated":1}"#),
            (Count::Created { announced: behind }, r#""JobsCreated":1,"TimeToJob":0}"#),
            (Count::Existing, r#""JobsExisting":1}"#),
            (Count::Ignored, r#""JobsIgnored":1}"#),
            (Count::Failed, r#""JobsFailed":1}"#),
        ];
        for (count, end) in cases {
            let line = text(count, None);
            assert!(line.ends_with(&format!("\"Queue\":\"none\",{end}\n")), "{line}");
        }
    }
}
