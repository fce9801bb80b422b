//! The log: a line on standard output for each event of `tracing`, as JSON or as text.
//!
//! tracing-subscriber is not used: it keeps a request's id as the JSON of a span, which it parses and writes again for each line, a tenth
//! of what a warm event costs.

use std::{
    cell::RefCell,
    fmt::Debug,
    io::{Write, stdout},
};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::task_local;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

use crate::{clock, json::Writer};

/// Who gets the lines in a simulation.
type Printer = Box<dyn Fn(&[u8])>;

thread_local! {
    static SIMULATED: RefCell<Option<Printer>> = const { RefCell::new(None) };
}

task_local! {
    /// What the lines of an invocation, or of a message, have as their field `span`, in JSON.
    static SPAN: String;
}

/// Whose lines they are.
#[derive(Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Span<'a> {
    /// An invocation's.
    #[expect(missing_docs, reason = "named as Lambda names them")]
    Invocation {
        request_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        xray_trace_id: Option<&'a str>,
    },
    /// Those of a message of the failure queue.
    #[expect(missing_docs, reason = "named as SQS names it")]
    Message { message_id: Option<&'a str> },
}

impl Span<'_> {
    /// Does the work, whose lines have this span.
    pub fn of<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        SPAN.scope(serde_json::to_string(self).unwrap_or_default(), work)
    }
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Text,
}

/// The subscriber of `tracing`. It has no spans of tracing's own.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    level: LevelFilter,
    format: Format,
}

/// From here on, what this thread prints goes there.
pub fn simulate(printer: impl Fn(&[u8]) + 'static) {
    SIMULATED.set(Some(Box::new(printer)));
}

/// Prints a line, the only way to standard output. One that cannot be written is no reason to fail.
pub fn print(line: &[u8]) {
    SIMULATED.with_borrow(|simulated| match simulated {
        Some(printer) => printer(line),
        None => drop(stdout().write_all(line)),
    });
}

/// Starts the log.
pub fn init(var: impl Fn(&str) -> Option<String>) {
    tracing::subscriber::set_global_default(Log::read(var)).expect("main calls it once");
}

impl Log {
    /// The log that the function's logging settings ask for.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Self {
        let level = match var("AWS_LAMBDA_LOG_LEVEL").as_deref() {
            // A level of Lambda's own.
            Some("FATAL") => LevelFilter::ERROR,
            Some(level) => level.parse().unwrap_or(LevelFilter::INFO),
            None => LevelFilter::INFO,
        };
        let is_json = var("AWS_LAMBDA_LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("json"));
        Self { level, format: if is_json { Format::Json } else { Format::Text } }
    }

    /// Libraries log warnings and errors only: at a finer level they print whole events and the answer of SSM.
    fn level_of(&self, target: &str) -> LevelFilter {
        match target {
            // It repeats every error that is reported already; Rust itself reports a panic.
            "lambda_runtime::layers::panic" => LevelFilter::OFF,
            _ if target.starts_with("agent_scheduler") => self.level,
            _ => self.level.min(LevelFilter::WARN),
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level_of(metadata.target())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = match self.format {
            Format::Json => json(event),
            Format::Text => text(event),
        };
        line.push(b'\n');
        print(&line);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// With its time: Lambda takes a line without one for INFO, whatever its level.
fn json(event: &Event<'_>) -> Vec<u8> {
    // Room for any line of usual length.
    let mut json = Writer::with_capacity(512);
    json.part("{");
    json.field("timestamp", &format_args!("{:.6}", Timestamp::try_from(clock::wall()).unwrap_or_default()));
    json.text("level", event.metadata().level().as_str());
    event.record(&mut Json(&mut json));
    let _ = SPAN.try_with(|span| {
        json.part(r#""span":"#);
        json.end(span);
    });
    json.end("}");
    json.into_bytes()
}

fn text(event: &Event<'_>) -> Vec<u8> {
    let mut text = format!("{:>5}", event.metadata().level()).into_bytes();
    event.record(&mut Text(&mut text));
    let _ = SPAN.try_with(|span| write!(text, " span={span}"));
    text
}

/// The fields of a line, as those of a JSON object.
struct Json<'a>(&'a mut Writer);

impl Json<'_> {
    fn field(&mut self, field: &Field, value: &(impl Serialize + ?Sized)) {
        self.0.field(field.name(), value);
    }
}

impl Visit for Json<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.field(field, &format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.text(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, &value);
    }
}

/// The same as `name=value`, and the message without its name.
struct Text<'a>(&'a mut Vec<u8>);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::{mem::take, rc::Rc};

    use serde_json::{Value, json};
    use tracing::subscriber::with_default;

    use super::*;

    /// What is printed with these settings.
    fn printed(format: &str, level: &str, work: impl FnOnce()) -> String {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let printed = Rc::clone(&lines);
        simulate(move |line| printed.borrow_mut().extend_from_slice(line));
        let var = |name: &str| match name {
            "AWS_LAMBDA_LOG_FORMAT" => Some(format.to_owned()),
            "AWS_LAMBDA_LOG_LEVEL" => Some(level.to_owned()),
            _ => None,
        };
        with_default(Log::read(var), work);
        String::from_utf8(take(&mut lines.borrow_mut())).unwrap()
    }

    fn all_kinds_of_fields() {
        let absent: Option<&str> = None;
        tracing::warn!(text = "a \"b\"\n", shown = %"c\n", number = -1, share = 0.5, is = true, absent, "message {}", 1);
    }

    #[test]
    fn a_line_has_the_fields_of_its_event_and_the_span_that_it_is_in() {
        let invocation = Span::Invocation { request_id: "1", xray_trace_id: None };
        let work = || SPAN.sync_scope(serde_json::to_string(&invocation).unwrap(), all_kinds_of_fields);
        let mut line: Value = serde_json::from_str(&printed("JSON", "INFO", work)).unwrap();
        let time: Timestamp = line["timestamp"].take().as_str().unwrap().parse().unwrap();
        assert!(Timestamp::now().duration_since(time).as_secs() < 60);
        let expected = json!({
            "timestamp": null, "level": "WARN", "message": "message 1", "text": "a \"b\"\n", "shown": "c\n", "number": -1,
            "share": 0.5, "is": true, "span": {"requestId": "1"},
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn text_is_one_line() {
        let expected = " WARN message 1 text=\"a \\\"b\\\"\\n\" shown=c number=-1 share=0.5 is=true\n";
        assert_eq!(printed("Text", "INFO", all_kinds_of_fields).replace("c\n ", "c "), expected);
    }

    #[test]
    fn a_level_hides_what_is_finer_and_libraries_are_never_finer_than_warnings() {
        let cases = [("ERROR", "eE"), ("FATAL", "eE"), ("INFO", "ewiEW"), ("DEBUG", "ewidEW"), ("none", "ewiEW")];
        for (level, expected) in cases {
            let printed = printed("Text", level, || {
                tracing::error!("e");
                tracing::warn!("w");
                tracing::info!("i");
                tracing::debug!("d");
                tracing::error!(target: "hyper", "E");
                tracing::warn!(target: "hyper", "W");
                tracing::info!(target: "hyper", "I");
                tracing::error!(target: "lambda_runtime::layers::panic", "P");
            });
            let messages: String = printed.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(messages, expected, "{level}");
        }
    }
}
