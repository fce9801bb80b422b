//! The Secrets with the agents' tokens.

use super::{Doctor, Finding};
use crate::{agent_token, text::chain};

pub(super) async fn agent_token(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    if doctor.token().await.is_err() {
        return vec![Finding::waits_for("agent token")];
    }
    let (config, name) = (doctor.config, &doctor.config.stack.agent_token_secret);
    if config.job_tokens {
        return Vec::new();
    }
    vec![match doctor.scheduler.try_secret(cluster, doctor.deadline).await {
        Ok(()) => Finding::well(format!("the API server takes Secret {name} (dry run)")),
        Err(error @ agent_token::Error::Conflict { .. }) => {
            let delete = format!("kubectl delete secret {name} --namespace {}", config.stack.namespace);
            let fix = format!(
                "# set AgentTokenSecretName to a name of this stack's own; or, if no other stack uses this one:\n{delete}"
            );
            Finding::wrong(chain(&error), fix)
        }
        Err(agent_token::Error::Apply { source, .. }) => config.failed(&source),
        Err(_) => Finding::waits_for("agent token"),
    }]
}

pub(super) async fn job_tokens(doctor: &Doctor<'_>) -> Vec<Finding> {
    let (config, name) = (doctor.config, &doctor.config.stack.agent_token_secret);
    if !config.job_tokens {
        return vec![Finding::well(format!("JobTokens is false: all agents have the agent token, from Secret {name}"))];
    }
    let Ok(cluster) = doctor.cluster().await else { return vec![Finding::waits_for("cluster")] };
    vec![match doctor.scheduler.is_secret_left_over(cluster, doctor.deadline).await {
        Ok(false) => {
            Finding::well("the API server takes a Secret for each Job (dry run), and none has the agent token")
        }
        Ok(true) => Finding::wrong(
            format!("each agent gets a token of its own, and Secret {name} still has the agent token"),
            format!(
                "# when no Job of before runs any more\nkubectl delete secret {name} --namespace {}",
                config.stack.namespace
            ),
        ),
        Err(error) => config.failed(&error),
    }]
}
