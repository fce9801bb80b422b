//! The labels and annotations of a Job and of its pod.

use std::borrow::Cow;

use serde_json::Value;

use crate::{
    buildkite::job::ScheduledJob,
    json::{self, Writer},
    stack::Stack,
};

/// The label, on Job and pod, that says which Buildkite job they are for.
pub const JOB_UUID_LABEL: &str = "buildkite.com/job-uuid";

/// The label, on Job and pod, that says which queue their job is in, where it can be a label's value.
pub const QUEUE_LABEL: &str = "buildkite.com/queue";

/// The label, on all that this function makes, that says who made it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// The label, on Job and pod, that says which stack made them: [`Stack::id`].
pub const STACK_LABEL: &str = "agent-scheduler.buildkite.com/stack";

/// The annotation, on Job and pod, that says which pod definition they have.
pub const DEFINITION_ANNOTATION: &str = "buildkite.com/pod-definition";

/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGER: &str = "agent-scheduler";

/// The most bytes of an annotation whose value comes from an event, far more than a branch has. Kubernetes takes 256 KiB for all
/// annotations of an object, and most of that is the definition's.
pub(super) const MAX_ANNOTATION_BYTES: usize = 4 * 1024;

/// Labels or annotations of ours: Job and pod have them, so their JSON is made once.
pub(super) struct Ours<'a> {
    fields: Vec<Field<'a>>,
    json: Vec<u8>,
}

type Field<'a> = (&'static str, Cow<'a, str>);

impl<'a> Ours<'a> {
    fn new(fields: Vec<Field<'a>>) -> Self {
        let mut json = Writer::with_capacity(1024);
        for (name, value) in &fields {
            json.text(name, value);
        }
        Self { json: json.into_bytes(), fields }
    }

    /// An object of ours, of what the Job alone has, and of what else the definition has.
    pub(super) fn write(&self, json: &mut Writer, name: &str, of_job: &[(&'static str, String)], theirs: &Value) {
        json.begin(name, "{");
        json.part(&self.json);
        for (name, value) in of_job {
            json.text(name, value);
        }
        let is_ours = |name: &str| {
            self.fields.iter().any(|(ours, _)| *ours == name) || of_job.iter().any(|(ours, _)| *ours == name)
        };
        json.part(json::without(theirs, is_ours));
        json.end("}");
    }
}

/// What the definition says itself wins, except for the labels that we find the Job by.
pub(super) fn labels<'a>(uuid: &'a str, queue: Option<&'a str>, stack: &'a Stack, own: &Value) -> Ours<'a> {
    // A queue key may be longer than a label, or end in `-`: then the Job goes without that label.
    let queue = queue.filter(|queue| is_label_value(queue) && own[QUEUE_LABEL].is_null());
    let found_by =
        [(MANAGED_BY_LABEL, MANAGER.into()), (STACK_LABEL, (&*stack.id).into()), (JOB_UUID_LABEL, uuid.into())];
    Ours::new(found_by.into_iter().chain(queue.map(|queue| (QUEUE_LABEL, queue.into()))).collect())
}

/// What leads from the Job back to its build, as far as the event says, and what keeps its node from being removed. What the
/// definition says itself wins.
pub(super) fn annotations<'a>(job: &'a ScheduledJob, uuid: &str, definition: &'a str, own: &Value) -> Ours<'a> {
    let mut annotations = vec![
        (DEFINITION_ANNOTATION, definition.into()),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false".into()),
        ("karpenter.sh/do-not-disrupt", "true".into()),
    ];
    let of_event = [
        ("buildkite.com/pipeline", &job.pipeline),
        ("buildkite.com/branch", &job.branch),
        ("buildkite.com/commit", &job.commit),
        ("buildkite.com/step-key", &job.step_key),
    ];
    annotations.extend(of_event.into_iter().filter_map(|(key, value)| {
        let value = value.as_deref()?;
        Some((key, value[..value.floor_char_boundary(MAX_ANNOTATION_BYTES)].into()))
    }));
    if let (Some(organization), Some(pipeline), Some(number)) = (&job.organization, &job.pipeline, job.build_number) {
        let build = format!("https://buildkite.com/{organization}/{pipeline}/builds/{number}");
        // A link that is cut leads nowhere.
        if build.len() <= MAX_ANNOTATION_BYTES {
            annotations.push(("buildkite.com/job-url", format!("{build}#{uuid}").into()));
            annotations.push(("buildkite.com/build-url", build.into()));
        }
    }
    annotations.retain(|(name, _)| own[*name].is_null());
    Ours::new(annotations)
}

fn is_label_value(value: &str) -> bool {
    let ends = [value.as_bytes().first(), value.as_bytes().last()];
    value.len() <= 63 && ends.into_iter().flatten().all(u8::is_ascii_alphanumeric)
}
