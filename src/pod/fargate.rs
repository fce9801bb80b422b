//! What Fargate does not run: it leaves such a pod pending, until the Job's deadline.
//!
//! From <https://docs.aws.amazon.com/eks/latest/userguide/fargate.html>.

use super::{definition::Problem, field::Field, node};

type Test = fn(&Field) -> bool;

/// Fields of the pod's spec, when they are refused, and what the pod would need.
const REFUSED: [(&str, Test, &str); 10] = [
    ("containers|initContainers * securityContext privileged", is_true, "a privileged container"),
    ("containers|initContainers * ports * hostPort", |port| port.value.as_u64() > Some(0), "a port of its host"),
    // Those with a domain in their name: nvidia.com/gpu, aws.amazon.com/neuroncore.
    (
        "containers|initContainers * resources limits|requests *",
        |name| name.path.contains('/'),
        "a GPU or another device",
    ),
    ("resourceClaims *", is_set, "a GPU or another device"),
    ("volumes * hostPath", is_set, "a path of its host"),
    ("volumes * ephemeral", is_set, "a generic ephemeral volume"),
    ("volumes * awsElasticBlockStore", is_set, "a volume of EBS"),
    ("hostNetwork", is_true, "the network of its host"),
    ("hostPID", is_true, "the processes of its host"),
    ("hostIPC", is_true, "the memory of its host"),
];

/// Checks the template of a pod that has a label for Fargate.
pub(super) fn check(template: &Field) -> Vec<Problem> {
    let labels = &template.value["metadata"]["labels"];
    let label = match () {
        () if labels["platform"] == "fargate" => "platform: fargate",
        () if labels["eks.amazonaws.com/fargate-profile"].is_string() => "eks.amazonaws.com/fargate-profile",
        () => return Vec::new(),
    };
    let spec = template.get("spec");
    let fields = REFUSED.into_iter().flat_map(|(pattern, is_refused, what)| {
        spec.select(pattern).into_iter().filter(is_refused).map(move |field| (field, what))
    });
    let nodes = [
        node::not_on_linux(&spec).map(|field| (field, "another system than Linux")),
        node::excludes(&spec, "arch", "amd64").map(|field| (field, "another architecture than amd64")),
    ];
    let problem = |(field, what): (Field, &str)| {
        field
            .problem(format!("must not be set under the label {label}: Fargate runs no pod with {what}; remove either"))
    };
    fields.chain(nodes.into_iter().flatten()).map(problem).collect()
}

fn is_true(field: &Field) -> bool {
    *field.value == true
}

fn is_set(field: &Field) -> bool {
    !field.value.is_null()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The fields of a pod's spec that are refused under these labels.
    fn refused(spec: &Value, labels: &Value) -> Vec<(String, String)> {
        let template = json!({"metadata": {"labels": labels}, "spec": spec});
        let problems = check(&Field { path: "template".to_owned(), value: &template });
        problems.into_iter().map(|problem| (problem.field, problem.problem)).collect()
    }

    #[test]
    fn what_fargate_refuses_is_refused_under_its_labels_and_accepted_without() {
        let device = |name: &str| json!({"containers": [{"resources": {"limits": {"cpu": 1, name: "1"}}}]});
        let terms =
            json!([{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]}]);
        let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        let cases = [
            (
                json!({"containers": [{"securityContext": {"privileged": true}}]}),
                "containers[0].securityContext.privileged",
                "a privileged container",
            ),
            (
                json!({"initContainers": [{}, {"securityContext": {"privileged": true}}]}),
                "initContainers[1].securityContext.privileged",
                "a privileged container",
            ),
            (
                json!({"containers": [{"ports": [{"containerPort": 1}, {"hostPort": 80}, {"hostPort": 0}]}]}),
                "containers[0].ports[1].hostPort",
                "a port of its host",
            ),
            (device("nvidia.com/gpu"), "containers[0].resources.limits[nvidia.com/gpu]", "a GPU or another device"),
            (device("amd.com/gpu"), "containers[0].resources.limits[amd.com/gpu]", "a GPU or another device"),
            (
                device("aws.amazon.com/neuroncore"),
                "containers[0].resources.limits[aws.amazon.com/neuroncore]",
                "a GPU or another device",
            ),
            (
                json!({"initContainers": [{"resources": {"requests": {"aws.amazon.com/neuron": 1}}}]}),
                "initContainers[0].resources.requests[aws.amazon.com/neuron]",
                "a GPU or another device",
            ),
            (json!({"resourceClaims": [{"name": "gpu"}]}), "resourceClaims[0]", "a GPU or another device"),
            (
                json!({"volumes": [{"emptyDir": {}}, {"hostPath": {"path": "/"}}]}),
                "volumes[1].hostPath",
                "a path of its host",
            ),
            (json!({"volumes": [{"ephemeral": {}}]}), "volumes[0].ephemeral", "a generic ephemeral volume"),
            (json!({"volumes": [{"awsElasticBlockStore": {}}]}), "volumes[0].awsElasticBlockStore", "a volume of EBS"),
            (json!({"hostNetwork": true, "hostPID": false}), "hostNetwork", "the network of its host"),
            (json!({"hostPID": true}), "hostPID", "the processes of its host"),
            (json!({"hostIPC": true}), "hostIPC", "the memory of its host"),
            (
                json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}}),
                "nodeSelector[kubernetes.io/arch]",
                "another architecture than amd64",
            ),
            (
                json!({"affinity": {"nodeAffinity": required}}),
                "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
                "another architecture than amd64",
            ),
            (json!({"os": {"name": "windows"}}), "os.name", "another system than Linux"),
        ];
        for (spec, field, what) in cases {
            for (label, value) in [("platform", "fargate"), ("eks.amazonaws.com/fargate-profile", "builds")] {
                let found = refused(&spec, &json!({label: value}));
                let [(path, text)] = &found[..] else { panic!("{spec}: {found:?}") };
                assert_eq!(*path, format!("template.spec.{field}"));
                assert!(text.starts_with(&format!("must not be set under the label {label}")), "{text}");
                assert!(text.contains(&format!("no pod with {what}; remove either")), "{text}");
            }
            for labels in [json!(null), json!({"platform": "ec2"})] {
                assert_eq!(refused(&spec, &labels), [], "{spec}");
            }
        }
    }

    #[test]
    fn what_fargate_runs_is_accepted() {
        let spec = json!({
            "containers": [{"resources": {"limits": {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi"}}}],
            "volumes": [{"emptyDir": {}}, {"persistentVolumeClaim": {"claimName": "efs"}}],
            "nodeSelector": {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
        });
        assert_eq!(refused(&spec, &json!({"platform": "fargate"})), []);
    }
}
