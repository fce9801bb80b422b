//! Which nodes a pod can run on, as far as its definition says.

use super::field::Field;

/// The field that keeps a pod from Linux.
pub(super) fn not_on_linux<'a>(spec: &Field<'a>) -> Option<Field<'a>> {
    let system = spec.get("os").get("name");
    if system.value.as_str().is_some_and(|name| name != "linux") { Some(system) } else { excludes(spec, "os", "linux") }
}

/// The field that keeps a pod from the nodes whose label `kubernetes.io/…` has this value. Each node has these labels, also under
/// their old names.
pub(super) fn excludes<'a>(spec: &Field<'a>, label: &str, value: &str) -> Option<Field<'a>> {
    const AFFINITY: &str = "affinity nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms";
    let labels = [format!("kubernetes.io/{label}"), format!("beta.kubernetes.io/{label}")];
    let selected = labels.iter().map(|label| spec.get("nodeSelector").get(label));
    if let Some(other) = selected.into_iter().find(|field| field.value.as_str().is_some_and(|own| own != value)) {
        return Some(other);
    }
    let excludes = |requirement: Field| {
        let is_of_label = labels.iter().any(|label| requirement.value["key"] == **label);
        let has_value = requirement.get("values").each().iter().any(|own| own.value == value);
        let is_refused = match requirement.value["operator"].as_str() {
            Some("In") => !has_value,
            Some("NotIn") => has_value,
            operator => operator == Some("DoesNotExist"),
        };
        is_of_label && is_refused
    };
    // A node needs to match one of the terms.
    let terms = spec.select(AFFINITY).into_iter().find(|terms| !terms.each().is_empty())?;
    let all = terms.each().iter().all(|term| term.select("matchExpressions *").into_iter().any(excludes));
    all.then_some(terms)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn path(spec: &Value) -> Option<String> {
        let spec = Field { path: "spec".to_owned(), value: spec };
        excludes(&spec, "arch", "amd64").map(|field| field.path)
    }

    #[test]
    fn a_selector_excludes_nodes_with_another_value() {
        let cases = [
            (json!({"kubernetes.io/arch": "arm64"}), Some("spec.nodeSelector[kubernetes.io/arch]")),
            (json!({"beta.kubernetes.io/arch": "arm64"}), Some("spec.nodeSelector[beta.kubernetes.io/arch]")),
            (json!({"kubernetes.io/arch": "amd64"}), None),
            (json!({"kubernetes.io/os": "arm64"}), None),
            (json!(null), None),
        ];
        for (selector, expected) in cases {
            assert_eq!(path(&json!({"nodeSelector": selector})).as_deref(), expected, "{selector}");
        }
    }

    #[test]
    fn an_affinity_excludes_a_node_that_matches_no_term() {
        let term = |operator: &str, values: &[&str]| {
            json!({"matchExpressions": [
                {"key": "other", "operator": "In", "values": ["amd64"]},
                {"key": "kubernetes.io/arch", "operator": operator, "values": values},
            ]})
        };
        let (arm, both) = (term("In", &["arm64"]), term("In", &["arm64", "amd64"]));
        let cases = [
            (json!([arm]), true),
            (json!([both]), false),
            (json!([arm, both]), false),
            (json!([arm, term("NotIn", &["amd64"])]), true),
            (json!([term("NotIn", &["arm64"])]), false),
            (json!([term("Exists", &[])]), false),
            (json!([term("DoesNotExist", &[])]), true),
            (json!([arm, {"matchExpressions": []}]), false),
            (json!([]), false),
            (json!(null), false),
        ];
        for (terms, expected) in cases {
            let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            let found = path(&json!({"affinity": {"nodeAffinity": required}}));
            let field = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
            assert_eq!(found.as_deref(), expected.then_some(field), "{terms}");
        }
    }

    #[test]
    fn a_pod_for_another_system_is_not_on_linux() {
        for (spec, expected) in [
            (json!({"os": {"name": "windows"}}), Some("os.name")),
            (json!({"os": {"name": "linux"}}), None),
            (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), Some("nodeSelector[kubernetes.io/os]")),
            (json!({"nodeSelector": {"kubernetes.io/os": "linux"}}), None),
        ] {
            let field = not_on_linux(&Field { path: String::new(), value: &spec });
            assert_eq!(field.map(|field| field.path).as_deref(), expected, "{spec}");
        }
    }
}
