//! What the Job controller and the kubelet make of a Job, on demand: this API server has neither.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Kubernetes;

impl Kubernetes {
    /// Gives a Job a pod on a node, whose agent has this state, such as `{"waiting": {}}`; null is no container status at all.
    pub fn start_pod(&self, job: &str, agent: &Value) {
        let owner = self.job(job).unwrap_or_else(|| panic!("there is no Job {job}"));
        let metadata = &owner["metadata"];
        let number = self.pods().len();
        let statuses = if agent.is_null() { json!([]) } else { json!([{"name": "agent", "state": agent}]) };
        self.put_pod(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("{job}-{number:05}"),
                "namespace": metadata["namespace"],
                "labels": owner["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": metadata["uid"], "controller": true}],
            },
            "spec": {"nodeName": "node-1"},
            "status": {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": time(self.now())}],
                "containerStatuses": statuses,
            },
        }));
        self.change_job(job, |job| job["status"]["active"] = 1.into());
    }

    /// Ends a Job: its agent exited with this code, and the Job is Complete if that is 0.
    pub fn end_job(&self, job: &str, exit_code: i32) {
        let now = self.now();
        let ended = json!({"exitCode": exit_code, "reason": if exit_code == 0 { "Completed" } else { "Error" }, "startedAt": time(now)});
        let uid = self.job(job).unwrap_or_else(|| panic!("there is no Job {job}"))["metadata"]["uid"].clone();
        for pod in self.api.store.lock().pods.values_mut() {
            if pod["metadata"]["ownerReferences"][0]["uid"] == uid {
                pod["status"]["containerStatuses"] = json!([{"name": "agent", "state": {"terminated": ended}}]);
            }
        }
        let condition = if exit_code == 0 {
            json!({"type": "Complete", "status": "True", "lastTransitionTime": time(now)})
        } else {
            json!({
                "type": "Failed", "status": "True", "reason": "PodFailurePolicy", "lastTransitionTime": time(now),
                "message": format!("Container agent for pod {job} failed with exit code {exit_code} matching FailJob rule at index 2"),
            })
        };
        self.change_job(job, |job| {
            job["status"] = json!({"conditions": [condition]});
            if exit_code == 0 {
                job["status"]["completionTime"] = time(now).into();
            }
        });
    }
}

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
