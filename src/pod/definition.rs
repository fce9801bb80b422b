//! A pod definition: what a job runs in.
//!
//! It is a core/v1 `PodTemplate` manifest, known by its `metadata.name`. It stays the JSON that its author wrote, so that a
//! field which this crate does not know reaches the API server and is judged there.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    check, image,
    job::{Fixed, TOKEN_VARIABLE},
    quantity::Quantity,
    resources,
};
use crate::{
    buildkite::rules::{AgentQueryRules, Choice},
    text::{excerpt, message},
};

/// The container that runs the Buildkite agent.
pub const AGENT: &str = "agent";

/// Annotations of the `PodTemplate` itself: which pipelines get it, whether steps may choose an image, and what they may ask for.
pub(super) const ALLOW_PIPELINES: &str = "agent-scheduler.buildkite.com/allow-pipelines";
pub(super) const ALLOW_IMAGE: &str = "agent-scheduler.buildkite.com/allow-image";
pub(super) const MAX_CPU: &str = "agent-scheduler.buildkite.com/max-cpu";
pub(super) const MAX_MEMORY: &str = "agent-scheduler.buildkite.com/max-memory";

/// Labels and annotations by which other controllers find what is theirs, to prune or to adopt it: all of a domain, or one. The
/// Job does not get them from its definition. The pod keeps them: it has an owner, the Job, and they leave such objects alone.
pub(super) const MARKS_OF_CONTROLLERS: [&str; 14] = [
    "addonmanager.kubernetes.io",
    "app.kubernetes.io/instance",
    "applyset.kubernetes.io",
    "argocd.argoproj.io",
    "cli-utils.sigs.k8s.io",
    "config.k8s.io",
    "configmanagement.gke.io",
    "configsync.gke.io",
    "helm.toolkit.fluxcd.io",
    "kapp.k14s.io",
    "kubectl.kubernetes.io/last-applied-configuration",
    "kustomize.toolkit.fluxcd.io",
    "meta.helm.sh",
    "objectset.rio.cattle.io",
];

/// A pod definition that a job can run in.
#[derive(Clone, Debug, PartialEq)]
pub struct PodDefinition {
    pub(super) name: String,
    /// The `PodTemplateSpec`. Its agent is the only container.
    pub(super) template: Value,
    /// What Jobs have of the template.
    pub(super) fixed: Fixed,
    /// The labels and annotations of its `metadata`, as the Job gets them.
    pub(super) metadata_of_job: Value,
    /// Their slugs. `None`: all.
    pub(super) allow_pipelines: Option<Vec<String>>,
    pub(super) allow_image: bool,
    pub(super) max_cpu: Option<Quantity>,
    pub(super) max_memory: Option<Quantity>,
}

/// No job can run in it: all that must change first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {}", list(.problems))]
pub struct Invalid {
    /// The file, or the object in the cluster.
    pub origin: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

/// What is wrong with one field, or what it risks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Problem {
    /// Its path in the manifest.
    pub field: String,
    /// What it must be, and what it is.
    pub problem: String,
}

/// Whether the jobs of a pipeline get a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// They do.
    Allowed,
    /// They do not.
    Refused(OtherPipelines),
    /// Only those of some pipelines do, and the job does not say which one is its own.
    Unknown,
}

/// The definition is for other pipelines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod definition {definition:?} is not for pipeline \"{}\": its annotation {ALLOW_PIPELINES} is \"{}\"; add the pipeline there, \
     or choose another definition",
    excerpt(.pipeline),
    excerpt(&.allowed.join(", "))
)]
pub struct OtherPipelines {
    /// Which definition.
    pub definition: String,
    /// The slug of the job's pipeline.
    pub pipeline: String,
    /// The slugs of those that get it.
    pub allowed: Vec<String>,
}

/// A rule of the step that its pod cannot meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the step asks for {rule}={}, {problem}", excerpt(.value))]
pub struct Unmet {
    /// `image`, `cpu` or `memory`.
    pub rule: &'static str,
    /// As the step writes it.
    pub value: String,
    /// Why not, and which limit it meets.
    pub problem: String,
}

impl PodDefinition {
    /// Checks a manifest. `origin` is the file that it comes from.
    pub fn parse(origin: &str, manifest: &Value) -> Result<Self, Invalid> {
        match check::kind(manifest) {
            Some(problem) => Err(Invalid { origin: origin.to_owned(), problems: vec![problem] }),
            None => Self::of_object(origin, manifest),
        }
    }

    /// The same for an item of a list of `PodTemplates`, which does not repeat its kind.
    pub fn of_object(origin: &str, object: &Value) -> Result<Self, Invalid> {
        let problems = check::check(object);
        if problems.is_empty() {
            Ok(Self::checked(object.clone()))
        } else {
            Err(Invalid { origin: origin.to_owned(), problems })
        }
    }

    /// Reads what has been checked before.
    pub fn checked(mut object: Value) -> Self {
        let mut metadata_of_job = object["template"]["metadata"].clone();
        for kind in ["labels", "annotations"] {
            if let Some(Value::Object(own)) = metadata_of_job.get_mut(kind) {
                own.retain(|name, _| !is_mark_of_a_controller(name));
            }
        }
        let metadata = &object["metadata"];
        let annotation = |name| metadata["annotations"][name].as_str();
        let quantity = |name| annotation(name).and_then(Quantity::parse);
        Self {
            name: metadata["name"].as_str().unwrap_or_default().to_owned(),
            allow_pipelines: annotation(ALLOW_PIPELINES).map(|text| slugs(text).map(str::to_owned).collect()),
            allow_image: annotation(ALLOW_IMAGE) != Some("false"),
            max_cpu: quantity(MAX_CPU),
            max_memory: quantity(MAX_MEMORY),
            metadata_of_job,
            fixed: Fixed::of(&object["template"]),
            template: object["template"].take(),
        }
    }

    /// What a step asks for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `PodTemplateSpec`, as its author wrote it.
    pub fn template(&self) -> &Value {
        &self.template
    }

    /// The one ordinary container.
    pub fn agent(&self) -> &Value {
        &self.template["spec"]["containers"][0]
    }

    /// What its jobs risk.
    pub fn warning(&self) -> Option<Problem> {
        check::warning(&self.template)
    }

    /// The agent's image, if it is at a host that no registry can have (RFC 2606): the definition waits for a real one.
    pub fn placeholder_image(&self) -> Option<&str> {
        let image = self.agent()["image"].as_str()?;
        image.split_once('/').filter(|(host, _)| host.ends_with(".invalid")).map(|_| image)
    }

    /// Whether its author provides the agent token, so that ours is not needed.
    pub fn brings_agent_token(&self) -> bool {
        self.fixed.sets(TOKEN_VARIABLE)
    }

    /// Whether a job of this pipeline gets it. Anyone who can edit a pipeline can name any definition, and with it its role.
    pub fn access(&self, pipeline: Option<&str>) -> Access {
        match (&self.allow_pipelines, pipeline) {
            (None, _) => Access::Allowed,
            (Some(allowed), Some(slug)) if allowed.iter().any(|allowed| allowed == slug) => Access::Allowed,
            (Some(allowed), Some(slug)) => Access::Refused(OtherPipelines {
                definition: self.name.clone(),
                pipeline: slug.to_owned(),
                allowed: allowed.clone(),
            }),
            (Some(_), None) => Access::Unknown,
        }
    }

    /// The definition as a step with these rules gets it. Operators shape pods and steps choose among them, so each choice
    /// is kept within what the definition allows.
    pub fn for_step(&self, rules: &AgentQueryRules) -> Result<Cow<'_, Self>, Unmet> {
        let (cpu, memory, image) = (one("cpu", rules.cpu)?, one("memory", rules.memory)?, one("image", rules.image)?);
        if (cpu, memory, image) == (None, None, None) {
            return Ok(Cow::Borrowed(self));
        }
        let mut changed = self.clone();
        let spec = &mut changed.template["spec"];
        if let Some(cpu) = cpu {
            resources::set_cpu(cpu, self, &mut spec["containers"][0])?;
        }
        if let Some(memory) = memory {
            resources::set_memory(memory, image.is_some(), self, &mut spec["containers"][0])?;
        }
        if let Some(image) = image {
            image::set(image, self, spec)?;
        }
        changed.fixed = Fixed::of(&changed.template);
        Ok(Cow::Owned(changed))
    }
}

/// The rule of a step that is behind a field which the API server refuses in its Job.
pub fn refused_rule(rules: &AgentQueryRules, field: &str, problem: &str) -> Option<Unmet> {
    let in_agent = field.strip_prefix("spec.template.spec.containers[0].")?;
    let is_of = |resource: &str| {
        in_agent.starts_with("resources") && (in_agent.contains(&format!("[{resource}]")) || problem.contains(resource))
    };
    let choices = [
        ("image", rules.image, in_agent == "image"),
        ("cpu", rules.cpu, is_of("cpu")),
        ("memory", rules.memory, is_of("memory")),
    ];
    choices.into_iter().find_map(|(rule, choice, is_refused)| match choice {
        Choice::One(value) if is_refused => {
            let problem = format!("which the API server refuses: {}", excerpt(problem));
            Some(Unmet { rule, value: value.to_owned(), problem })
        }
        _ => None,
    })
}

fn one<'a>(rule: &'static str, choice: Choice<'a>) -> Result<Option<&'a str>, Unmet> {
    match choice {
        Choice::Any => Ok(None),
        Choice::One(value) => Ok(Some(value)),
        Choice::Contradiction(first, other) => {
            let problem = format!("and for {rule}={} as well; it can have one only", excerpt(other));
            Err(Unmet { rule, value: first.to_owned(), problem })
        }
    }
}

pub(super) fn slugs(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

fn is_mark_of_a_controller(name: &str) -> bool {
    let domain = name.split_once('/').map(|(domain, _)| domain);
    MARKS_OF_CONTROLLERS.iter().any(|mark| domain == Some(mark) || name == *mark)
}

/// The variable of this name that a container sets.
pub(super) fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    container["env"].as_array()?.iter().find(|variable| variable["name"] == name)
}

fn list(problems: &[Problem]) -> String {
    message(&problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")).into_owned()
}

/// Definitions for the tests of other rooms.
#[cfg(test)]
pub(crate) mod fixtures {
    use serde_json::json;

    use super::*;

    /// The least that a template needs.
    pub(crate) fn template() -> Value {
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4"}]}})
    }

    /// A definition named `example` with this `template`.
    pub(crate) fn definition(template: &Value) -> PodDefinition {
        annotated(template, &json!(null))
    }

    /// The same with annotations of its own.
    pub(crate) fn annotated(template: &Value, annotations: &Value) -> PodDefinition {
        let manifest = json!({
            "apiVersion": "v1", "kind": "PodTemplate",
            "metadata": {"name": "example", "annotations": annotations}, "template": template,
        });
        PodDefinition::parse("example.yaml", &manifest).unwrap()
    }

    /// The template that a step with these rules gets, or why it gets none.
    pub(crate) fn for_step(rules: &[&str], definition: &PodDefinition) -> Result<Value, String> {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let changed = definition.for_step(&AgentQueryRules::parse(&rules));
        changed.map(|changed| changed.template.clone()).map_err(|unmet| unmet.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use serde_json::json;

    use super::{
        fixtures::{annotated, definition, for_step, template},
        *,
    };

    #[test]
    fn a_definition_keeps_fields_that_are_unknown_here() {
        let mut template = template();
        template["spec"]["fieldOfTomorrow"] = json!({"a": 1});
        let definition = definition(&template);
        assert_eq!((definition.name(), definition.template()), ("example", &template));
        assert!(definition.allow_image && !definition.brings_agent_token());
    }

    #[test]
    fn a_definition_is_for_the_pipelines_that_its_annotation_names() {
        let limited = annotated(&template(), &json!({ALLOW_PIPELINES: "deploy, release-2 ,x_y"}));
        let all = definition(&template());
        let cases = [
            (&all, Some("web"), true),
            (&all, None, true),
            (&limited, Some("deploy"), true),
            (&limited, Some("release-2"), true),
            (&limited, Some("x_y"), true),
            (&limited, Some("Deploy"), false),
            (&limited, Some("deploy2"), false),
            (&limited, Some(""), false),
        ];
        for (definition, pipeline, expected) in cases {
            assert_eq!(definition.access(pipeline) == Access::Allowed, expected, "{pipeline:?}");
        }
        assert_eq!(limited.access(None), Access::Unknown);
        let Access::Refused(refused) = limited.access(Some("web")) else { panic!("web is not refused") };
        assert_eq!(
            refused.to_string(),
            "pod definition \"example\" is not for pipeline \"web\": its annotation agent-scheduler.buildkite.com/allow-pipelines is \
             \"deploy, release-2, x_y\"; add the pipeline there, or choose another definition"
        );
        let Access::Refused(refused) = limited.access(Some(&"a\n".repeat(100_000))) else {
            panic!("it is not refused")
        };
        assert!(refused.to_string().len() < 1_000 && !refused.to_string().contains(char::is_control));
    }

    #[test]
    fn a_field_that_the_api_server_refuses_is_of_the_rule_that_set_it() {
        let rules = ["image=node", "cpu=3", "memory=1Gi"].map(str::to_owned);
        let cases = [
            ("containers[0].image", "Required value", Some("image")),
            ("containers[0].resources.requests", "must be less than or equal to cpu limit of 2", Some("cpu")),
            ("containers[0].resources.limits[memory]", "Invalid value", Some("memory")),
            ("containers[0].resources.requests", "must be less than or equal to nvidia.com/gpu limit of 1", None),
            ("containers[0].imagePullPolicy", "Unsupported value", None),
            ("containers[0].env[0].name", "the image has one", None),
            ("initContainers[0].image", "Required value", None),
            ("serviceAccountName", "cpu", None),
        ];
        for (field, problem, rule) in cases {
            let field = format!("spec.template.spec.{field}");
            let unmet = refused_rule(&AgentQueryRules::parse(&rules), &field, problem);
            assert_eq!(unmet.as_ref().map(|unmet| unmet.rule), rule, "{field}");
            assert!(unmet.is_none_or(|unmet| unmet.problem.ends_with(problem)));
            assert_eq!(refused_rule(&AgentQueryRules::default(), &field, problem), None, "the step set nothing");
        }
    }

    #[test]
    fn a_step_that_chooses_nothing_or_anything_gets_the_definition_itself() {
        let definition = annotated(&template(), &json!({ALLOW_IMAGE: "false", MAX_CPU: "1"}));
        for rules in [&[][..], &["queue=kubernetes", "pod-definition=node"], &["image=*", "cpu=", "memory=*"]] {
            let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
            let rules = AgentQueryRules::parse(&rules);
            assert!(matches!(definition.for_step(&rules), Ok(Cow::Borrowed(_))), "{rules:?}");
        }
    }

    #[test]
    fn a_step_can_have_one_of_each_only() {
        let cases: [(&[&str], &str); 3] = [
            (&["cpu=1", "cpu=2"], "cpu=1, and for cpu=2 as well; it can have one only"),
            (&["memory=1Gi", "memory=1024Mi"], "memory=1Gi, and for memory=1024Mi as well; it can have one only"),
            (&["image=a", "image=a", "image=b"], "image=a, and for image=b as well; it can have one only"),
        ];
        for (rules, expected) in cases {
            let error = for_step(rules, &definition(&template()));
            assert_eq!(error, Err(format!("the step asks for {expected}")));
        }
    }

    #[test]
    fn a_refusal_is_one_short_line_whatever_the_step_asks_for() {
        let long = "a".repeat(100_000);
        for value in [&*format!("7\n{long}"), &format!("\u{202e}{long}"), &format!("0.{}9", "0".repeat(100_000))] {
            for rules in [
                &[&*format!("image=\t{value}")][..],
                &[&*format!("cpu={value}x")],
                &[&*format!("memory={value}")],
                &["cpu=1", &*format!("cpu={value}")],
            ] {
                let error = for_step(rules, &definition(&template())).unwrap_err();
                assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
            }
        }
    }

    #[test]
    fn the_definitions_of_the_pages_can_be_used() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut names = Vec::new();
        for page in ["README.md", "docs", "pod-definitions"].iter().flat_map(|place| pages(&root.join(place))) {
            let text = fs::read_to_string(&page).unwrap();
            let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
            for (yaml, _) in
                blocks.filter(|(yaml, _)| yaml.contains("kind: PodTemplate") && yaml.contains("\ntemplate:"))
            {
                let manifest: Value = serde_saphyr::from_str(yaml).unwrap();
                names.push(PodDefinition::parse(&page.display().to_string(), &manifest).unwrap().name);
            }
        }
        assert!(names.len() >= 2, "{names:?}");
    }

    /// The Markdown files there.
    fn pages(place: &Path) -> Vec<PathBuf> {
        if place.is_dir() {
            return fs::read_dir(place).unwrap().flat_map(|entry| pages(&entry.unwrap().path())).collect();
        }
        Some(place.to_owned()).filter(|file| file.extension().is_some_and(|kind| kind == "md")).into_iter().collect()
    }
}
