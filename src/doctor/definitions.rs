//! Pod definitions: whether the API server takes their Jobs, and whether what they name is there.

use std::collections::BTreeSet;

use futures_util::future::join_all;
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

pub(super) async fn jobs(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let (definitions, unlisted) = definitions::all(cluster, doctor.deadline).await;
    let unlisted = unlisted.map(|error| (String::new(), Err(error)));
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
    let mut findings = Vec::new();
    for (origin, tried) in unlisted.into_iter().chain(join_all(tried).await) {
        match tried {
            Ok(finding) => findings.push(finding),
            Err(error) if error.kind() == "Unauthorized" => return vec![Finding::waits_for("identity")],
            Err(error) if error.is_wrong_endpoint() => return vec![Finding::waits_for("cluster")],
            Err(error @ kubernetes::Error::Rejected(_)) => findings.push(refused(doctor.config, &origin, &error)),
            // The others would meet the same.
            Err(error) => return vec![doctor.config.wrong(&error)],
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
    let scheduled = ScheduledJob {
        time: None,
        uuid: Uuid::nil(),
        kind: "script".to_owned(),
        agent_query_rules: Vec::new(),
        step_key: None,
        build_number: None,
        commit: None,
        branch: None,
        pipeline: None,
        organization: None,
    };
    let job = job::build(&scheduled, Some(&stack.queues[0]), None, definition, stack);
    let warnings = cluster.try_job(&job, doctor.deadline).await?.warnings.join("; ");
    Ok(if warnings.contains("PodSecurity") {
        let fix = "# where the namespace enforces it, such a Job gets no pod: correct the definition, or have its steps ask for \
                   pod-definition=restricted (docs/security.md)";
        Finding::wrong(format!("{origin}: the API server warns: {warnings}"), fix)
    } else if warnings.is_empty() {
        Finding::well(format!("{origin}: the API server takes its Job (dry run)"))
    } else {
        Finding::well(format!("{origin}: the API server takes its Job (dry run), and warns: {warnings}"))
    })
}

fn refused(config: &Config, origin: &str, error: &kubernetes::Error) -> Finding {
    let fields: Vec<_> = error.refused_fields().map(|(field, _)| field).filter(|field| !field.is_empty()).collect();
    let text = chain(error);
    let fix = if text.contains("exceeded quota") {
        format!("kubectl describe quota --namespace {}   # raise it, or lower JobTtlSeconds", config.stack.namespace)
    } else {
        format!("# correct {}{}", fields.iter().map(|field| format!("{field} of ")).collect::<String>(), origin)
    };
    Finding::wrong(format!("{origin}: {text}"), fix)
}

pub(super) async fn names(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    let (definitions, _) = definitions::all(cluster, doctor.deadline).await;
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
            Err(_) => Finding::waits_for("cluster"),
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
    others.into_iter().chain(secrets).filter_map(|(kind, name)| Some((kind, name.as_str()?))).collect()
}
