//! `cpu=` and `memory=` of a step: what the agent's container requests, and its limit.

use serde_json::Value;

use super::{
    definition::{MAX_CPU, MAX_MEMORY, PodDefinition, Unmet},
    quantity::Quantity,
};
use crate::text::excerpt;

/// No agent starts with less. The author of a smaller value forgot the suffix, or wrote that of CPU: `4` is four bytes.
const MIN_MEMORY: &str = "16Mi";

/// The same with an image of the step, whose agent is a copy: what is read of that counts as the container's memory. One with 32Mi
/// thrashes and never registers, one with 48Mi just starts.
const MIN_MEMORY_WITH_IMAGE: &str = "64Mi";

/// Sets the request. A limit of the definition stays, and the request must be within it.
pub(super) fn set_cpu(cpu: &str, definition: &PodDefinition, agent: &mut Value) -> Result<(), Unmet> {
    let own = &agent["resources"]["limits"]["cpu"];
    // Text or a number; the API server judges whether it is well written.
    let own = own.as_str().map_or_else(|| own.to_string(), str::to_owned);
    let limits = [
        (definition.max_cpu.clone(), format!("annotation {MAX_CPU}")),
        (Quantity::parse(&own), "resources.limits.cpu".to_owned()),
    ];
    amount("cpu", cpu, limits, definition)?;
    agent["resources"]["requests"]["cpu"] = cpu.into();
    Ok(())
}

/// Sets the request and the limit: a container that may use more memory than it requests can be killed for it.
pub(super) fn set_memory(
    memory: &str,
    has_image: bool,
    definition: &PodDefinition,
    agent: &mut Value,
) -> Result<(), Unmet> {
    let limits = [(definition.max_memory.clone(), format!("annotation {MAX_MEMORY}"))];
    let amount = amount("memory", memory, limits, definition)?;
    let (min, why) = if has_image {
        (MIN_MEMORY_WITH_IMAGE, ", too little for an agent in an image of the step")
    } else {
        (MIN_MEMORY, "")
    };
    if Quantity::parse(min).is_some_and(|min| min.exceeds(&amount)) {
        let problem = format!("which is less than {min}{why}; write 4Gi, not 4, and 512Mi, not 512m");
        return Err(Unmet { rule: "memory", value: memory.to_owned(), problem });
    }
    for kind in ["requests", "limits"] {
        agent["resources"][kind]["memory"] = memory.into();
    }
    Ok(())
}

/// What the step asks for, within all limits, each of which says where it is.
fn amount<const N: usize>(
    rule: &'static str,
    value: &str,
    limits: [(Option<Quantity>, String); N],
    definition: &PodDefinition,
) -> Result<Quantity, Unmet> {
    let unmet = |problem| Unmet { rule, value: value.to_owned(), problem };
    let Some(amount) = Quantity::parse(value).filter(|amount| !amount.is_zero()) else {
        let problem = "which is no amount; write a quantity of Kubernetes, such as 500m, 2 or 4Gi";
        return Err(unmet(problem.to_owned()));
    };
    for (limit, whose) in limits {
        if let Some(limit) = limit.filter(|limit| amount.exceeds(limit)) {
            let (limit, name) = (excerpt(&limit.text), definition.name());
            return Err(unmet(format!("and may have {limit} at most, as {whose} of pod definition {name:?} says")));
        }
    }
    Ok(amount)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::definition::fixtures::{annotated, definition, for_step, template};

    #[test]
    fn cpu_sets_the_request_and_memory_the_request_and_the_limit() {
        let cases = [
            (
                &["cpu=4000m", "memory=8Gi", "cpu=*"],
                json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": 4, "memory": "2Gi", "other": "1"}}),
                json!({"requests": {"cpu": "4000m", "memory": "8Gi"}, "limits": {"cpu": 4, "memory": "8Gi", "other": "1"}}),
            ),
            (
                &["cpu=2", "memory=4Gi", "memory="],
                json!(null),
                json!({"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}),
            ),
        ];
        for (rules, own, expected) in cases {
            let mut template = template();
            template["spec"]["containers"][0]["resources"] = own;
            let changed = for_step(rules, &definition(&template)).unwrap();
            template["spec"]["containers"][0]["resources"] = expected;
            assert_eq!(changed, template);
        }
    }

    #[test]
    fn an_amount_up_to_the_limit_is_allowed() {
        let definition = annotated(&template(), &json!({MAX_CPU: "4", MAX_MEMORY: "8Gi"}));
        for rule in ["cpu=4", "cpu=4000m", "memory=8192Mi", "memory=1.1Gi", "memory=1.5G", "memory=16Mi"] {
            for_step(&[rule], &definition).unwrap();
        }
    }

    #[test]
    fn a_rule_that_cannot_be_met_is_named_with_its_value_and_the_limit() {
        let mut template = template();
        template["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("2500m");
        let definition = annotated(&template, &json!({MAX_CPU: "4", MAX_MEMORY: "8Gi"}));
        let cases = [
            (
                "cpu=4001m",
                ", and may have 4 at most, as annotation agent-scheduler.buildkite.com/max-cpu of pod definition \"example\" says",
            ),
            ("cpu=3", ", and may have 2500m at most, as resources.limits.cpu of pod definition \"example\" says"),
            (
                "memory=9Gi",
                ", and may have 8Gi at most, as annotation agent-scheduler.buildkite.com/max-memory of pod definition",
            ),
            ("cpu=two", ", which is no amount; write a quantity of Kubernetes"),
            ("cpu=0", ", which is no amount"),
            ("cpu=-1", ", which is no amount"),
            ("memory=4GB", ", which is no amount"),
            ("memory=4", ", which is less than 16Mi; write 4Gi, not 4, and 512Mi, not 512m"),
            ("memory=512m", ", which is less than 16Mi; write 4Gi, not 4"),
            ("memory=16383Ki", ", which is less than 16Mi"),
        ];
        for (rule, problem) in cases {
            let error = for_step(&[rule], &definition).unwrap_err();
            assert!(error.starts_with(&format!("the step asks for {rule}{problem}")), "{error}");
        }
    }

    #[test]
    fn an_agent_in_an_image_of_the_step_needs_more_memory() {
        let definition = definition(&template());
        let error = for_step(&["image=node:24", "memory=63Mi"], &definition).unwrap_err();
        let problem = "which is less than 64Mi, too little for an agent in an image of the step; write 4Gi, not 4,";
        assert!(error.starts_with(&format!("the step asks for memory=63Mi, {problem}")), "{error}");
        for_step(&["image=node:24", "memory=64Mi"], &definition).unwrap();
        for_step(&["image=*", "memory=16Mi"], &definition).unwrap();
    }
}
