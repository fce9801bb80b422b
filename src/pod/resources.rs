//! What a step may change in the pod definition that it chose: `image=`, `cpu=` and `memory=` among its agent query rules.
//!
//! Operators shape pods and steps choose among them, so each is kept within what the definition allows.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    excerpt::excerpt,
    pod_definition::{ALLOW_IMAGE, MAX_CPU, MAX_MEMORY, PodDefinition},
    quantity::Quantity,
    query_rules::AgentQueryRules,
};

/// Where the agent and what belongs to it are put in the step's image: the place that the agent's own images have them at.
const HOME: &str = "/buildkite";

/// The volume that carries them there, and the init container that fills it.
const VOLUME: &str = "agent-scheduler-agent";
const COPY_AGENT: &str = "agent-scheduler-copy-agent";

/// No agent starts in less. Who asks for it has most likely left out the suffix, or taken that of CPU: `4` is four bytes.
const LEAST_MEMORY: &str = "16Mi";

/// Copies the agent, its configuration and its hooks, and the certificates that it knows Buildkite by. Whatever user the step's
/// image has may then write there.
const COPY: &str = "set -e
agent=\"${1:-$(command -v buildkite-agent || true)}\"
[ -f \"$agent\" ] || {
    echo \"The image of the pod definition has no ${1:-buildkite-agent in its PATH} to put into the image of the step.\" >&2
    exit 1
}
if [ -d /buildkite/. ]; then cp -R /buildkite/. /agent-scheduler/; fi
rm -f /agent-scheduler/buildkite-agent
cp \"$agent\" /agent-scheduler/buildkite-agent
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt /agent-scheduler/; fi
touch /agent-scheduler/buildkite-agent.cfg
chmod -R a+rwX /agent-scheduler/*";

/// The agent runs commands with bash, if it is not told otherwise, and an image may have none. Nor need it have certificates:
/// those files are where Go, in which the agent is written, looks for them.
const START: &str = "[ -x /bin/bash ] || export BUILDKITE_SHELL=\"${BUILDKITE_SHELL:-/bin/sh -e -c}\"
[ -n \"${SSL_CERT_FILE-}${SSL_CERT_DIR-}\" ] ||
    [ -f /etc/ssl/certs/ca-certificates.crt ] ||
    [ -f /etc/pki/tls/certs/ca-bundle.crt ] ||
    [ -f /etc/ssl/ca-bundle.pem ] ||
    [ -f /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem ] ||
    [ -f /etc/ssl/cert.pem ] ||
    [ ! -f /buildkite/ca-certificates.crt ] ||
    export SSL_CERT_FILE=/buildkite/ca-certificates.crt
exec /buildkite/buildkite-agent \"$@\"";

/// What one step asks of its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrides<'a> {
    image: Option<&'a str>,
    cpu: Option<&'a str>,
    memory: Option<&'a str>,
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

impl<'a> Overrides<'a> {
    /// Reads what the step asks for.
    pub fn of(rules: &AgentQueryRules<'a>) -> Result<Self, Unmet> {
        let one = |rule| {
            let mut values = rules.values(rule);
            let Some(first) = values.next() else { return Ok(None) };
            match values.find(|value| *value != first) {
                Some(other) => {
                    Err(unmet(rule, first, format!("and for {rule}={} as well; it can have one only", excerpt(other))))
                }
                None => Ok(Some(first)),
            }
        };
        Ok(Self { image: one("image")?, cpu: one("cpu")?, memory: one("memory")? })
    }

    /// Nothing: the definition serves as it is.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self { image: None, cpu: None, memory: None })
    }

    /// The definition as this step gets it.
    pub fn apply(&self, definition: &PodDefinition) -> Result<PodDefinition, Unmet> {
        let mut template = definition.template().clone();
        // That it is there was checked when the definition was loaded.
        let agent = &mut template["spec"]["containers"][0];
        if let Some(cpu) = self.cpu {
            let amount = amount("cpu", cpu)?;
            within("cpu", &amount, definition.max_cpu.as_ref(), || annotation(definition, MAX_CPU))?;
            let own = quantity(&agent["resources"]["limits"]["cpu"]);
            within("cpu", &amount, own.as_ref(), || {
                format!("as resources.limits.cpu of pod definition {:?} says", definition.name())
            })?;
            put(agent, &["resources", "requests", "cpu"], cpu.into());
        }
        if let Some(memory) = self.memory {
            let amount = amount("memory", memory)?;
            if LEAST_MEMORY.parse::<Quantity>().is_ok_and(|least| least.exceeds(&amount)) {
                let problem = format!("which is less than {LEAST_MEMORY}; write 4Gi, not 4, and 512Mi, not 512m");
                return Err(unmet("memory", memory, problem));
            }
            within("memory", &amount, definition.max_memory.as_ref(), || annotation(definition, MAX_MEMORY))?;
            for kind in ["requests", "limits"] {
                put(agent, &["resources", kind, "memory"], memory.into());
            }
        }
        if let Some(image) = self.image {
            put_agent_into(image, definition, &mut template["spec"])?;
        }
        Ok(definition.with_template(template))
    }
}

/// Puts the step's image into the agent's container, and the agent beside it.
fn put_agent_into(image: &str, definition: &PodDefinition, spec: &mut Value) -> Result<(), Unmet> {
    let refuse = |problem: String| Err(unmet("image", image, problem));
    if !definition.allow_image {
        return refuse(format!(
            "and pod definition {:?} allows no other image ({ALLOW_IMAGE} is \"false\")",
            definition.name()
        ));
    }
    if !image.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte)) {
        return refuse("which is no reference of an image".to_owned());
    }
    let agent = definition.agent();
    let mounts = agent["volumeMounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let taken = |mount: &Value| mount["mountPath"].as_str().is_some_and(|path| path.trim_end_matches('/') == HOME);
    if let Some(mount) = mounts.iter().find(|mount| taken(mount)) {
        return refuse(format!(
            "and pod definition {:?} mounts {} at {HOME}, where the agent would have to be; set {ALLOW_IMAGE} to \"false\" \
             there, or mount it elsewhere",
            definition.name(),
            excerpt(&mount["name"].to_string())
        ));
    }

    let Some((binary, arguments)) = start(agent) else {
        return refuse(format!(
            "and pod definition {:?} starts its agent in a way of its own, which would be lost; set {ALLOW_IMAGE} to \"false\" \
             there, or make start a word of its own in command or args",
            definition.name()
        ));
    };
    // Everything else is that of another image.
    let stays = |path: &str| {
        let mounted = mounts.iter().filter_map(|mount| mount["mountPath"].as_str());
        mounted.chain([HOME]).any(|folder| Path::new(path).starts_with(folder))
    };

    let mut command = vec!["/bin/sh", "-c", COPY, COPY_AGENT];
    command.extend(binary);
    let mut copy = json!({
        "name": COPY_AGENT,
        "command": command,
        "volumeMounts": [{"name": VOLUME, "mountPath": "/agent-scheduler"}],
    });
    let changed = &mut spec["containers"][0];
    // The image that the author chose, in the way that he chose it, and within the limits of the container that it makes ready.
    for field in ["image", "imagePullPolicy", "securityContext", "resources"] {
        if let Some(value) = changed.get(field) {
            copy[field] = value.clone();
        }
    }
    changed["image"] = image.into();
    // The policy was for the other image; Kubernetes finds the one for this image's tag.
    changed.as_object_mut().map(|agent| agent.remove("imagePullPolicy"));
    changed["command"] = json!(["/bin/sh", "-c", START, "buildkite-agent"]);
    changed["args"] = arguments;
    for (variable, path) in [
        ("BUILDKITE_AGENT_CONFIG", "buildkite-agent.cfg"),
        ("BUILDKITE_BUILD_PATH", "builds"),
        ("BUILDKITE_HOOKS_PATH", "hooks"),
        ("BUILDKITE_PLUGINS_PATH", "plugins"),
    ] {
        let value = json!({"name": variable, "value": format!("{HOME}/{path}")});
        let Some(env) = list(changed, "env") else { continue };
        if !env.iter().any(|own| own["name"] == variable) {
            env.push(value);
            continue;
        }
        for own in env.iter_mut().filter(|own| own["name"] == variable) {
            if own["valueFrom"].is_null() && !own["value"].as_str().is_some_and(stays) {
                own.clone_from(&value);
            }
        }
    }

    // First, so that nothing waits for it.
    insert_first(changed, "volumeMounts", json!({"name": VOLUME, "mountPath": HOME}));
    insert_first(spec, "initContainers", copy);
    insert_first(spec, "volumes", json!({"name": VOLUME, "emptyDir": {}}));
    Ok(())
}

/// The agent's binary where the definition names its path, and what the agent gets, from `start` on; what stands before that
/// is in the image of the definition. `None` if the definition's command does not tell.
fn start(agent: &Value) -> Option<(Option<&str>, Value)> {
    let words = ["command", "args"].into_iter().flat_map(|field| agent[field].as_array().into_iter().flatten());
    let words: Vec<&Value> = words.collect();
    if words.is_empty() {
        return Some((None, json!(["start"])));
    }
    let start = words.iter().position(|word| *word == "start")?;
    let before = start.checked_sub(1).and_then(|place| words[place].as_str());
    Some((before.filter(|word| word.ends_with("/buildkite-agent")), json!(words[start..])))
}

/// Sets what stands at this path. Nothing is put in the place of what is no map: the API server tells what is wrong with it.
fn put(object: &mut Value, path: &[&str], value: Value) {
    let mut place = object;
    for field in path {
        if place.is_null() {
            *place = json!({});
        }
        let Some(object) = place.as_object_mut() else { return };
        place = object.entry(*field).or_insert(Value::Null);
    }
    *place = value;
}

/// A list of the object, empty if it is absent. `None` for what is no list: the API server tells what is wrong with it.
fn list<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let list = object.as_object_mut()?.entry(field).or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
}

fn insert_first(object: &mut Value, field: &str, item: Value) {
    if let Some(list) = list(object, field) {
        list.insert(0, item);
    }
}

fn amount(rule: &'static str, value: &str) -> Result<Quantity, Unmet> {
    match value.parse::<Quantity>() {
        Ok(amount) if !amount.is_zero() => Ok(amount),
        _ => Err(unmet(
            rule,
            value,
            "which is no amount; write a quantity of Kubernetes, such as 500m, 2 or 4Gi".to_owned(),
        )),
    }
}

fn within(
    rule: &'static str,
    amount: &Quantity,
    limit: Option<&Quantity>,
    whose: impl FnOnce() -> String,
) -> Result<(), Unmet> {
    match limit {
        Some(limit) if amount.exceeds(limit) => Err(unmet(
            rule,
            &amount.to_string(),
            format!("and may have {} at most, {}", excerpt(&limit.to_string()), whose()),
        )),
        _ => Ok(()),
    }
}

fn annotation(definition: &PodDefinition, name: &str) -> String {
    format!("as annotation {name} of pod definition {:?} says", definition.name())
}

/// One that the author wrote, as text or as a number; whether it is well written the API server will say.
fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

fn unmet(rule: &'static str, value: &str, problem: String) -> Unmet {
    Unmet { rule, value: value.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        path::PathBuf,
        process::{self, Command},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::pod_definition::fixtures::{annotated, definition};

    fn template() -> Value {
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4", "args": ["start"]}]}})
    }

    fn applied(rules: &[&str], definition: &PodDefinition) -> Result<Value, String> {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let overrides = Overrides::of(&AgentQueryRules::parse(&rules)).map_err(|unmet| unmet.to_string())?;
        overrides.apply(definition).map(|definition| definition.template().clone()).map_err(|unmet| unmet.to_string())
    }

    #[test]
    fn a_step_that_asks_for_nothing_or_anything_changes_nothing() {
        for rules in [&[][..], &["queue=default", "pod-definition=node"], &["image=*", "cpu=", "memory=*"]] {
            let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
            assert!(Overrides::of(&AgentQueryRules::parse(&rules)).unwrap().is_empty(), "{rules:?}");
        }
    }

    #[test]
    fn cpu_sets_the_request_and_memory_the_request_and_the_limit() {
        let mut template = template();
        template["spec"]["containers"][0]["resources"] =
            json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": 4, "memory": "2Gi", "other": "1"}});
        let changed = applied(&["cpu=4000m", "memory=8Gi", "cpu=*"], &definition(&template)).unwrap();
        template["spec"]["containers"][0]["resources"] = json!({
            "requests": {"cpu": "4000m", "memory": "8Gi"}, "limits": {"cpu": 4, "memory": "8Gi", "other": "1"},
        });
        assert_eq!(changed, template);
    }

    #[test]
    fn resources_may_be_absent_from_the_definition() {
        let changed = applied(&["cpu=2", "memory=4Gi"], &definition(&template())).unwrap();
        let expected = json!({"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}});
        assert_eq!(changed["spec"]["containers"][0]["resources"], expected);
    }

    #[test]
    fn what_is_just_allowed_is_given() {
        let limits = json!({MAX_CPU: "4", MAX_MEMORY: "8Gi", ALLOW_IMAGE: "true"});
        let definition = annotated(&template(), &limits);
        for rule in
            ["cpu=4", "cpu=4000m", "memory=8192Mi", "memory=1.1Gi", "memory=1.5G", "memory=16Mi", "image=node:24"]
        {
            applied(&[rule], &definition).unwrap();
        }
    }

    #[test]
    fn a_rule_that_cannot_be_met_is_named_with_its_value_and_the_limit() {
        let mut template = template();
        template["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("2500m");
        let limits = json!({MAX_CPU: "4", MAX_MEMORY: "8Gi", ALLOW_IMAGE: "false"});
        let definition = annotated(&template, &limits);
        let cases: [(&[&str], &str); 14] = [
            (
                &["cpu=4001m"],
                "cpu=4001m, and may have 4 at most, as annotation agent-scheduler.buildkite.com/max-cpu of pod definition \"example\" says",
            ),
            (
                &["cpu=3"],
                "cpu=3, and may have 2500m at most, as resources.limits.cpu of pod definition \"example\" says",
            ),
            (
                &["memory=9Gi"],
                "memory=9Gi, and may have 8Gi at most, as annotation agent-scheduler.buildkite.com/max-memory of pod definition",
            ),
            (
                &["image=node:24"],
                "image=node:24, and pod definition \"example\" allows no other image (agent-scheduler.buildkite.com/allow-image is \"false\")",
            ),
            (&["cpu=two"], "cpu=two, which is no amount; write a quantity of Kubernetes"),
            (&["cpu=0"], "cpu=0, which is no amount"),
            (&["cpu=-1"], "cpu=-1, which is no amount"),
            (&["memory=4GB"], "memory=4GB, which is no amount"),
            (&["memory=4"], "memory=4, which is less than 16Mi; write 4Gi, not 4, and 512Mi, not 512m"),
            (&["memory=512m"], "memory=512m, which is less than 16Mi; write 4Gi, not 4"),
            (&["memory=16383Ki"], "memory=16383Ki, which is less than 16Mi"),
            (&["cpu=1", "cpu=2"], "cpu=1, and for cpu=2 as well; it can have one only"),
            (&["memory=1Gi", "memory=1024Mi"], "memory=1Gi, and for memory=1024Mi as well"),
            (&["image=a", "image=a", "image=b"], "image=a, and for image=b as well"),
        ];
        for (rules, expected) in cases {
            let told = applied(rules, &definition).unwrap_err();
            assert!(told.starts_with(&format!("the step asks for {expected}")), "{told}");
        }
    }

    #[test]
    fn the_image_gets_the_agent_of_the_definition() {
        let template = json!({"spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "agent", "image": "agent:4", "imagePullPolicy": "Always",
                "command": ["tini", "buildkite-agent"], "args": ["start", "--no-color"],
                "securityContext": {"runAsUser": 1000}, "resources": {"requests": {"cpu": "4"}},
                "env": [
                    {"name": "BUILDKITE_HOOKS_PATH", "value": "/hooks"},
                    {"name": "BUILDKITE_PLUGINS_PATH", "value": "/buildkite/cache/plugins"},
                ],
                "volumeMounts": [{"name": "cache", "mountPath": "/buildkite/cache"}],
            }],
            "initContainers": [{"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
        }});
        let image = "registry.example:5000/node@sha256:0123";
        let rules = [&*format!("image={image}"), "cpu=1"];
        let spec = &applied(&rules, &definition(&template)).unwrap()["spec"];
        let resources = json!({"requests": {"cpu": "1"}});
        assert_eq!(
            spec["initContainers"],
            json!([
                {
                    "name": "agent-scheduler-copy-agent", "image": "agent:4", "imagePullPolicy": "Always",
                    "command": ["/bin/sh", "-c", COPY, "agent-scheduler-copy-agent"],
                    "securityContext": {"runAsUser": 1000}, "resources": resources,
                    "volumeMounts": [{"name": "agent-scheduler-agent", "mountPath": "/agent-scheduler"}],
                },
                {"name": "dockerd", "image": "docker:dind", "restartPolicy": "Always"},
            ])
        );
        assert_eq!(
            spec["containers"],
            json!([{
                "name": "agent", "image": image,
                "command": ["/bin/sh", "-c", START, "buildkite-agent"], "args": ["start", "--no-color"],
                "securityContext": {"runAsUser": 1000}, "resources": resources,
                "env": [
                    {"name": "BUILDKITE_HOOKS_PATH", "value": "/buildkite/hooks"},
                    {"name": "BUILDKITE_PLUGINS_PATH", "value": "/buildkite/cache/plugins"},
                    {"name": "BUILDKITE_AGENT_CONFIG", "value": "/buildkite/buildkite-agent.cfg"},
                    {"name": "BUILDKITE_BUILD_PATH", "value": "/buildkite/builds"},
                ],
                "volumeMounts": [
                    {"name": "agent-scheduler-agent", "mountPath": "/buildkite"},
                    {"name": "cache", "mountPath": "/buildkite/cache"},
                ],
            }])
        );
        assert_eq!(spec["volumes"][0], json!({"name": "agent-scheduler-agent", "emptyDir": {}}));
        assert_eq!(spec["volumes"][1]["name"], "cache");
    }

    #[test]
    fn an_image_needs_no_arguments_lists_or_volumes_in_the_definition() {
        let mut template = template();
        template["spec"]["containers"][0].as_object_mut().unwrap().remove("args");
        let spec = &applied(&["image=node:24"], &definition(&template)).unwrap()["spec"];
        assert_eq!(spec["containers"][0]["args"], json!(["start"]));
        assert_eq!(spec["initContainers"].as_array().unwrap().len(), 1);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_path_of_the_agent_stays_if_it_is_there_in_the_image_of_the_step() {
        let (from, ours) = (json!({"configMapKeyRef": {"name": "agent", "key": "builds"}}), "/buildkite/builds");
        let cases = [
            (json!({"value": "/mnt/builds"}), json!({"value": "/mnt/builds"})),
            (json!({"value": "/mnt/"}), json!({"value": "/mnt/"})),
            (json!({"value": "/buildkite/other"}), json!({"value": "/buildkite/other"})),
            (json!({"valueFrom": from}), json!({"valueFrom": from})),
            (json!({"value": "/var/lib/buildkite-agent/builds"}), json!({"value": ours})),
            (json!({"value": "/mnt2/builds"}), json!({"value": ours})),
            (json!({}), json!({"value": ours})),
        ];
        for (mut own, mut expected) in cases {
            let mut template = template();
            let agent = &mut template["spec"]["containers"][0];
            own["name"] = json!("BUILDKITE_BUILD_PATH");
            expected["name"] = json!("BUILDKITE_BUILD_PATH");
            agent["volumeMounts"] = json!([{"name": "mnt", "mountPath": "/mnt/"}]);
            agent["env"] = json!([{"name": "BEFORE"}, own, {"name": "AFTER", "value": "$(BUILDKITE_BUILD_PATH)"}]);
            let spec = &applied(&["image=node:24"], &definition(&template)).unwrap()["spec"];
            let env = spec["containers"][0]["env"].as_array().unwrap();
            assert_eq!((&env[1], env.len()), (&expected, 6), "{own}");
        }
    }

    #[test]
    fn the_agent_is_started_as_the_definition_starts_it_or_not_at_all() {
        let (none, path) = (None, Some("/usr/local/bin/buildkite-agent"));
        let cases = [
            (json!(null), json!(null), Ok((none, json!(["start"])))),
            (json!([]), json!([]), Ok((none, json!(["start"])))),
            (json!(null), json!(["start", "--no-color"]), Ok((none, json!(["start", "--no-color"])))),
            (
                json!(["buildkite-agent", "start"]),
                json!(["--spawn", "start"]),
                Ok((none, json!(["start", "--spawn", "start"]))),
            ),
            (json!(["tini", "--", path]), json!(["start"]), Ok((path, json!(["start"])))),
            (json!([path, "--debug"]), json!(["start"]), Ok((none, json!(["start"])))),
            (json!(["/entry.sh"]), json!(["start"]), Ok((none, json!(["start"])))),
            (json!(["sh", "-c", "exec buildkite-agent start --no-color"]), json!(null), Err(())),
            (json!(["/entry.sh"]), json!(null), Err(())),
        ];
        for (command, args, expected) in cases {
            let mut template = template();
            template["spec"]["containers"][0]["command"] = command.clone();
            template["spec"]["containers"][0]["args"] = args;
            let changed = applied(&["image=node:24"], &definition(&template));
            let Ok((binary, arguments)) = expected else {
                let told = changed.unwrap_err();
                assert!(told.contains("pod definition \"example\" starts its agent in a way of its own"), "{told}");
                continue;
            };
            let spec = &changed.unwrap()["spec"];
            assert_eq!(spec["containers"][0]["args"], arguments, "{command}");
            assert_eq!(spec["initContainers"][0]["command"].get(4).and_then(Value::as_str), binary, "{command}");
        }
    }

    #[test]
    fn what_is_neither_a_list_nor_a_map_where_it_should_be_stays_for_the_api_server_to_refuse() {
        let agent = "/spec/containers/0";
        for path in [
            &*format!("{agent}/env"),
            &format!("{agent}/volumeMounts"),
            &format!("{agent}/resources"),
            &format!("{agent}/resources/requests"),
            &format!("{agent}/resources/limits"),
            "/spec/initContainers",
            "/spec/volumes",
        ] {
            for wrong in [json!("text"), json!(1), json!(true), json!({"a": "map"}), json!(["a list"])] {
                let mut template = template();
                let (object, field) = path.rsplit_once('/').unwrap();
                template["spec"]["containers"][0]["resources"] = json!({});
                template.pointer_mut(object).unwrap()[field] = wrong.clone();
                // Not by way of `PodDefinition::parse`, which need not take it.
                let definition = definition(&self::template()).with_template(template);
                let changed = applied(&["image=node:24", "cpu=1", "memory=1Gi"], &definition).unwrap();
                let right = if path.contains("resources") { wrong.is_object() } else { wrong.is_array() };
                assert_eq!(changed.pointer(path) == Some(&wrong), !right, "{path} {wrong}");
            }
        }
    }

    /// A folder that stands for the root of both containers, and goes with the test.
    struct Root(PathBuf);

    impl Root {
        /// With a `buildkite-agent` in the PATH that tells what it gets.
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("overrides {} {}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let root = Self(env::temp_dir().join(name));
            root.executable("usr/bin/buildkite-agent", "in the PATH");
            fs::create_dir(root.0.join("agent-scheduler")).unwrap();
            root
        }

        fn write(&self, path: &str, text: &str, mode: u32) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }

        fn executable(&self, path: &str, which: &str) {
            let text = format!("#!/bin/sh\necho '{which}'\nfor word; do echo \"<$word>\"; done\nenv\n");
            self.write(path, &text, 0o555);
        }

        fn mode(&self, path: &str) -> u32 {
            fs::metadata(self.0.join(path)).unwrap().permissions().mode() & 0o777
        }

        /// What the script says, on stdout if it succeeds and on stderr if not, with this folder in place of `/`.
        fn run(&self, shell: &str, script: &str, words: &[&str], variables: &[(&str, &str)]) -> Result<String, String> {
            let root = self.0.to_str().unwrap();
            let quoted = format!("'{root}'");
            let places = ["/agent-scheduler/", "/buildkite/", "/etc/", "/bin/bash"];
            let marked =
                places.iter().fold(script.to_owned(), |script, place| script.replace(place, &format!("\0{place}")));
            let mut command = Command::new(shell);
            if shell.ends_with("busybox") {
                command.arg("sh");
            }
            command.args(["-c", &marked.replace('\0', &quoted), "name of the script"]).args(words);
            command.env_clear().env("PATH", format!("{root}/usr/bin:/usr/bin:/bin")).envs(variables.iter().copied());
            let output = command.output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap().replace(root, "");
            if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
        }

        fn copy(&self, shell: &str, words: &[&str]) -> Result<String, String> {
            self.run(shell, COPY, words, &[])
        }

        /// Starts the agent, with the copy where the step's container has it.
        fn start(&self, shell: &str, words: &[&str], variables: &[(&str, &str)]) -> String {
            let (copy, home) = (self.0.join("agent-scheduler"), self.0.join("buildkite"));
            let _ = fs::remove_dir_all(&home);
            fs::rename(&copy, &home).unwrap();
            let told = self.run(shell, START, words, variables).unwrap();
            fs::rename(&home, &copy).unwrap();
            told
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// `sh` is there, and whatever else an image may have by that name.
    fn shells() -> impl Iterator<Item = &'static str> {
        ["/bin/sh", "/bin/dash", "/bin/bash", "/bin/busybox"].into_iter().filter(|shell| Path::new(shell).exists())
    }

    #[test]
    fn the_agent_is_copied_with_what_is_beside_it_and_the_copy_can_be_written_to() {
        for shell in shells() {
            let root = Root::new();
            root.copy(shell, &[]).unwrap();
            assert_eq!(fs::read_dir(root.0.join("agent-scheduler")).unwrap().count(), 2, "{shell}");
            assert_eq!(root.mode("agent-scheduler/buildkite-agent.cfg"), 0o666, "{shell}");

            root.write("buildkite/buildkite-agent.cfg", "spawn=1", 0o400);
            root.write("buildkite/hooks/environment", "echo hook", 0o500);
            root.write("etc/ssl/certs/ca-certificates.crt", "certificates", 0o444);
            root.executable("buildkite/buildkite-agent", "beside the configuration");
            // A container that is made again finds what the first one left.
            for _ in 0..2 {
                root.copy(shell, &[]).unwrap();
                let copies = [
                    ("buildkite-agent.cfg", 0o666, "spawn=1"),
                    ("hooks/environment", 0o777, "echo hook"),
                    ("ca-certificates.crt", 0o666, "certificates"),
                ];
                for (file, mode, text) in copies {
                    let path = format!("agent-scheduler/{file}");
                    assert_eq!(fs::read_to_string(root.0.join(&path)).unwrap(), text, "{shell} {file}");
                    assert_eq!(root.mode(&path), mode, "{shell} {file}");
                }
                assert_eq!(root.mode("agent-scheduler/buildkite-agent"), 0o777, "{shell}");
            }
            assert!(root.start(shell, &[], &[]).starts_with("in the PATH\n"), "{shell}");

            let named = root.0.join("opt/buildkite-agent");
            root.executable("opt/buildkite-agent", "the one that is named");
            root.copy(shell, &[named.to_str().unwrap()]).unwrap();
            assert!(root.start(shell, &[], &[]).starts_with("the one that is named\n"), "{shell}");
        }
    }

    #[test]
    fn an_agent_that_is_not_there_is_told_and_nothing_is_copied() {
        for shell in shells() {
            let root = Root::new();
            let told = root.copy(shell, &["/nowhere/buildkite-agent"]).unwrap_err();
            let rest = "to put into the image of the step.\n";
            assert_eq!(
                told,
                format!("The image of the pod definition has no /nowhere/buildkite-agent {rest}"),
                "{shell}"
            );
            // Nor is there any in the PATH of the machine that tests.
            let missing = COPY.replace("buildkite-agent ||", "buildkite-agent-that-is-nowhere ||");
            let told = root.run(shell, &missing, &[], &[]).unwrap_err();
            assert_eq!(
                told,
                format!("The image of the pod definition has no buildkite-agent in its PATH {rest}"),
                "{shell}"
            );
            assert_eq!(fs::read_dir(root.0.join("agent-scheduler")).unwrap().count(), 0, "{shell}");
        }
    }

    #[test]
    fn the_agent_gets_its_arguments_and_a_shell_that_is_there() {
        const OURS: &str = "BUILDKITE_SHELL=/bin/sh -e -c\n";
        for shell in shells() {
            let root = Root::new();
            root.copy(shell, &[]).unwrap();
            let told = root.start(shell, &["start", "--name", "an agent  of $HOME", "", "*"], &[("KEPT", "as it is")]);
            assert!(told.contains("<start>\n<--name>\n<an agent  of $HOME>\n<>\n<*>\n"), "{shell} {told}");
            assert!(told.contains(OURS) && told.contains("KEPT=as it is\n"), "{shell} {told}");
            let told = root.start(shell, &["start"], &[("BUILDKITE_SHELL", "/bin/zsh -c")]);
            assert!(told.contains("BUILDKITE_SHELL=/bin/zsh -c\n"), "{shell} {told}");
            root.executable("bin/bash", "bash");
            assert!(!root.start(shell, &["start"], &[]).contains("BUILDKITE_SHELL"), "{shell}");
        }
    }

    #[test]
    fn the_copied_certificates_serve_where_there_are_no_others() {
        const OURS: &str = "SSL_CERT_FILE=/buildkite/ca-certificates.crt\n";
        for shell in shells() {
            let root = Root::new();
            root.copy(shell, &[]).unwrap();
            assert!(!root.start(shell, &[], &[]).contains("SSL_CERT"), "{shell}: there is no copy");
            let first = "etc/ssl/certs/ca-certificates.crt";
            root.write(first, "certificates", 0o444);
            root.copy(shell, &[]).unwrap();
            fs::remove_file(root.0.join(first)).unwrap();
            assert!(root.start(shell, &[], &[]).contains(OURS), "{shell}");
            for (own, value) in [("SSL_CERT_FILE", "/own.pem"), ("SSL_CERT_DIR", "/own")] {
                let told = root.start(shell, &[], &[(own, value)]);
                assert!(told.contains(&format!("{own}={value}\n")) && !told.contains(OURS), "{shell} {told}");
            }
            for file in [
                first,
                "etc/pki/tls/certs/ca-bundle.crt",
                "etc/ssl/ca-bundle.pem",
                "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
                "etc/ssl/cert.pem",
            ] {
                root.write(file, "certificates", 0o444);
                assert!(!root.start(shell, &[], &[]).contains("SSL_CERT"), "{shell} {file}");
                fs::remove_file(root.0.join(file)).unwrap();
            }
        }
    }

    #[test]
    fn a_refusal_is_one_line_and_no_flood_whatever_the_step_asks_for() {
        let long = "a".repeat(100_000);
        for value in [&*format!("7\n{long}"), &format!("\u{202e}{long}"), &format!("0.{}9", "0".repeat(100_000))] {
            for rules in [&[&*format!("image=\t{value}")], &[&*format!("cpu={value}x")], &[&*format!("memory={value}")]]
            {
                let told = applied(rules, &definition(&template())).unwrap_err();
                assert!(told.len() < 1_000 && !told.contains(char::is_control), "{told}");
            }
            let told = applied(&["cpu=1", &format!("cpu={value}")], &definition(&template())).unwrap_err();
            assert!(told.len() < 1_000 && !told.contains(char::is_control), "{told}");
        }
    }

    #[test]
    fn an_image_that_is_none_or_has_no_place_for_the_agent_is_refused() {
        let told = applied(&["image=node 24"], &definition(&template())).unwrap_err();
        assert_eq!(told, "the step asks for image=node 24, which is no reference of an image");
        for path in ["/buildkite", "/buildkite/"] {
            let mut template = template();
            template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "builds", "mountPath": path}]);
            let told = applied(&["image=node:24"], &definition(&template)).unwrap_err();
            assert!(told.contains("pod definition \"example\" mounts \"builds\" at /buildkite"), "{told}");
        }
    }
}
