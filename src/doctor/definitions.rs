//! Pod definitions: whether the API server takes their Jobs, and whether what they name is there.

use std::collections::BTreeSet;

use futures_util::{StreamExt, future::join_all, stream};
use serde_json::Value;
use uuid::Uuid;

use super::{Doctor, Finding};
use crate::{
    buildkite::job::ScheduledJob,
    config::Config,
    definitions,
    kubernetes::{self, Cluster, NamedKind},
    pod::{definition::PodDefinition, job},
    text::chain,
};

/// A namespace may hold thousands of definitions.
const SIDE_BY_SIDE: usize = 16;

impl Doctor<'_> {
    async fn definitions(&self, cluster: &Cluster) -> &definitions::All {
        self.definitions.get_or_init(async || definitions::all(cluster, self.deadline).await).await
    }
}

pub(super) async fn jobs(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let (definitions, unlisted) = doctor.definitions(cluster).await;
    let unlisted = unlisted.as_ref().map(|error| doctor.config.failed(error));
    let tried = definitions.iter().map(|(origin, definition)| async move {
        let definition = match definition {
            Ok(definition) => definition,
            Err(invalid) => {
                return (origin.clone(), Ok(Finding::wrong(invalid.to_string(), format!("# correct {origin}"))));
            }
        };
        if let Some(image) = definition.placeholder_image() {
            let found = format!("{origin} has the placeholder {image} as its image: no job gets it");
            return (origin.clone(), Ok(Finding { ok: None, found, fix: None }));
        }
        (origin.clone(), try_job(doctor, cluster, origin, definition).await)
    });
    let tried: Vec<_> = stream::iter(tried).buffered(SIDE_BY_SIDE).collect().await;
    let mut findings = Vec::from_iter(unlisted);
    for (origin, tried) in tried {
        match tried {
            Ok(finding) => findings.push(finding),
            Err(error @ kubernetes::Error::Rejected(_)) => findings.push(refused(doctor.config, &origin, &error)),
            // The others would meet the same.
            Err(error) => return vec![doctor.config.failed(&error)],
        }
    }
    findings
}

async fn try_job(
    doctor: &Doctor<'_>,
    cluster: &Cluster,
    origin: &str,
    definition: &PodDefinition,
) -> Result<Finding, kubernetes::Error> {
    let stack = &doctor.config.stack;
    let scheduled = ScheduledJob::script(Uuid::nil());
    let job = job::build(&scheduled, Some(&stack.queues[0]), None, definition, stack);
    let warnings = cluster.try_job(&job, doctor.deadline).await?.warnings.join("; ");
    Ok(if warnings.contains("PodSecurity") {
        let fix = "# where the namespace enforces it, such a Job gets no pod: correct the definition, or have its steps ask for \
                   pod-definition=restricted (docs/security.md)";
        Finding::wrong(format!("{origin}: the API server warns: {warnings}"), fix)
    } else {
        let taken = format!("{origin}: the API server takes its Job (dry run)");
        let warned = (!warnings.is_empty()).then(|| format!("and warns: {warnings}"));
        let risk = definition.warning().map(|risk| risk.to_string());
        Finding::well([Some(taken), warned, risk].into_iter().flatten().collect::<Vec<_>>().join("; "))
    })
}

fn refused(config: &Config, origin: &str, error: &kubernetes::Error) -> Finding {
    let fields: Vec<_> = error.refused_fields().map(|(field, _)| field).filter(|field| !field.is_empty()).collect();
    let text = chain(error);
    let fix = if text.contains("exceeded quota") {
        format!("kubectl describe quota --namespace {}   # raise it, or lower JobTtlSeconds", config.stack.namespace)
    } else {
        let fields = fields.join(", ");
        format!("# correct {}{origin}", if fields.is_empty() { fields } else { format!("{fields} of ") })
    };
    Finding::wrong(format!("{origin}: {text}"), fix)
}

pub(super) async fn names(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let (definitions, _) = doctor.definitions(cluster).await;
    let usable = definitions.iter().filter_map(|(_, definition)| definition.as_ref().ok());
    let usable = usable.filter(|definition| definition.placeholder_image().is_none());
    let named: BTreeSet<_> = usable.flat_map(|definition| named(&definition.template()["spec"])).collect();
    let looks = named.into_iter().map(|(kind, name)| async move {
        let (resource, create) = match kind {
            NamedKind::ServiceAccount => ("serviceaccount", "serviceaccount"),
            NamedKind::Secret => {
                ("secret", "secret docker-registry --docker-server=… --docker-username=… --docker-password=…")
            }
            NamedKind::PriorityClass => ("priorityclass", "priorityclass --value=…"),
        };
        let place = format!("{name} --namespace {}", doctor.config.stack.namespace);
        match cluster.exists(kind, name, doctor.deadline).await {
            Ok(true) => Finding::well(format!("{resource} {name} is there")),
            Ok(false) => Finding::wrong(
                format!("a pod definition names {resource} {name}, which is not there: its pods do not start"),
                format!("kubectl create {create} {place}"),
            ),
            Err(kubernetes::Error::Forbidden { .. }) => Finding::unseen(
                format!("a pod definition names {resource} {name}; not looked at: the function may not read it"),
                format!("kubectl get {resource} {place}"),
            ),
            Err(error) => doctor.config.failed(&error),
        }
    });
    let mut findings = join_all(looks).await;
    if findings.is_empty() {
        findings
            .push(Finding::well("no pod definition names a service account, an image pull secret or a priority class"));
    }
    findings
}

fn named(spec: &Value) -> Vec<(NamedKind, &str)> {
    let secrets = spec["imagePullSecrets"].as_array().into_iter().flatten();
    let secrets = secrets.map(|secret| (NamedKind::Secret, &secret["name"]));
    let others = [
        (NamedKind::ServiceAccount, &spec["serviceAccountName"]),
        (NamedKind::PriorityClass, &spec["priorityClassName"]),
    ];
    // Other names can be of no object, and they would stand in a path and in a command.
    let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let named = others.into_iter().chain(secrets).map(|(kind, name)| Some((kind, name.as_str().filter(is_name)?)));
    named.flatten().collect()
}
