//! A Job that is there already.

use uuid::Uuid;

use super::{Error, Scheduler};
use crate::{
    deadline::Deadline,
    kubernetes::{Cluster, jobs},
    pod::{job, metadata::JOB_UUID_LABEL},
    text::excerpt,
};

impl Scheduler {
    /// The Job that has the name, if an earlier delivery of the same event created it: then it has our label for the job.
    pub(super) async fn existing(&self, cluster: &Cluster, uuid: Uuid, deadline: Deadline) -> Result<jobs::Job, Error> {
        let name = job::name(uuid);
        let found = match cluster.job(&name, deadline).await {
            Ok(found) => found,
            Err(source) => return Err(Error::ReadJob { name, source }),
        };
        let label = found.metadata.labels.get(JOB_UUID_LABEL);
        if label.is_none_or(|label| *label != uuid.to_string()) {
            let label = label.map_or_else(|| "absent".to_owned(), |label| format!("\"{}\"", excerpt(label)));
            return Err(Error::NameTaken { name, label });
        }
        if found.metadata.deletion_timestamp.is_some() {
            return Err(Error::JobIsDeleted { name });
        }
        if let Some(failed) = found.condition("Failed") {
            let next = if self.config.sweep_enabled && self.stacks_api.is_some() {
                "the sweep makes the next one if the job still waits"
            } else {
                "no agent takes this job any more; retry the step in Buildkite, or delete the Job"
            };
            tracing::warn!(
                job = %uuid,
                reason = failed.reason.as_deref(),
                cause = failed.message.as_deref().map(excerpt).as_deref(),
                "Job {name} has failed: {next}"
            );
        }
        Ok(found)
    }
}
