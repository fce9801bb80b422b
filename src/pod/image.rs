//! `image=` of a step: the image of the agent's container, with the agent of the definition copied into it.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    definition::{ALLOW_IMAGE, PodDefinition, Unmet},
    field::Field,
    image_reference, node,
};
use crate::text::excerpt;

/// Where the agent and its files are in the step's image: where the agent's own images have them.
const HOME: &str = "/buildkite";

/// The volume that carries them there, and the init container that fills it.
const VOLUME: &str = "agent-scheduler-agent";
const COPY_AGENT: &str = "agent-scheduler-copy-agent";

/// Copies the agent, its configuration, its hooks and what else is beside them, tini, and the certificates that it knows Buildkite by.
/// Any user may write to the copies, since the user of the step's image is not known.
///
/// Both scripts are part of each Job with an image, so they have no comments.
const COPY_SCRIPT: &str = include_str!("copy-agent.sh");

/// Starts the copy. The agent runs commands with bash by default, and an image may have none. Nor need it have certificates:
/// the script looks where Go, in which the agent is written, looks for them. Without git a second try of a checkout helps as little
/// as the first.
///
/// It writes the SSH files of the variables of `ssh-env-config.sh`, which the agent's own images start their agent with.
///
/// The agent image's tini is the first process, if it runs in the step's image, and reaps what steps leave. Its environment can be
/// read by a step, so the agent gets its token through a pipe. Without tini the agent itself clears it.
const START_SCRIPT: &str = include_str!("start-agent.sh");

/// The agent's paths that a definition may set for its own image, and where they are in the step's.
const PATHS: [(&str, &str); 5] = [
    ("BUILDKITE_AGENT_CONFIG", "buildkite-agent.cfg"),
    ("BUILDKITE_BUILD_PATH", "builds"),
    ("BUILDKITE_HOOKS_PATH", "hooks"),
    ("BUILDKITE_PLUGINS_PATH", "plugins"),
    // By default in the home of the user, who may have none in the step's image.
    ("BUILDKITE_SOCKETS_PATH", "sockets"),
];

/// Puts the step's image into the agent's container, and the agent beside it.
pub(super) fn set(image: &str, definition: &PodDefinition, spec: &mut Value) -> Result<(), Unmet> {
    let (binary, arguments) =
        check(image, definition).map_err(|problem| Unmet { rule: "image", value: image.to_owned(), problem })?;

    let agent = &mut spec["containers"][0];
    let mut command = vec!["/bin/sh", "-c", COPY_SCRIPT, COPY_AGENT];
    command.extend(binary);
    let mut copy = json!({
        "name": COPY_AGENT,
        "command": command,
        "volumeMounts": [{"name": VOLUME, "mountPath": "/agent-scheduler"}],
    });
    // The image of the definition, used as its author uses it, within the limits of the container that it prepares.
    for field in ["image", "imagePullPolicy", "securityContext", "resources"] {
        if let Some(value) = agent.get(field) {
            copy[field] = value.clone();
        }
    }
    agent["image"] = image.into();
    // The policy was for the other image; Kubernetes has a default for this image's tag.
    agent.as_object_mut().map(|agent| agent.remove("imagePullPolicy"));
    agent["command"] = json!(["/bin/sh", "-c", START_SCRIPT, "buildkite-agent"]);
    agent["args"] = arguments;
    set_paths(agent, definition);

    // First, so that nothing waits for it.
    list(agent, "volumeMounts").insert(0, json!({"name": VOLUME, "mountPath": HOME}));
    list(spec, "initContainers").insert(0, copy);
    list(spec, "volumes").insert(0, json!({"name": VOLUME, "emptyDir": {}}));
    Ok(())
}

/// How the agent starts, if this image can have it, or what is wrong.
fn check<'a>(image: &str, definition: &'a PodDefinition) -> Result<(Option<&'a str>, Value), String> {
    let (name, agent) = (definition.name(), definition.agent());
    if !definition.allow_image {
        return Err(format!("and pod definition {name:?} allows no other image ({ALLOW_IMAGE} is \"false\")"));
    }
    image_reference::check(image)?;
    let spec = Field { path: String::new(), value: &definition.template()["spec"] };
    if let Some(field) = node::not_on_linux(&spec) {
        return Err(format!(
            "and pod definition {name:?} is for another system than Linux ({}), where the agent cannot be copied into an image; \
             set {ALLOW_IMAGE} to \"false\" there",
            field.path
        ));
    }
    let is_home = |mount: &&Value| mount["mountPath"].as_str().is_some_and(|path| path.trim_end_matches('/') == HOME);
    if let Some(mount) = agent["volumeMounts"].as_array().into_iter().flatten().find(is_home) {
        return Err(format!(
            "and pod definition {name:?} mounts {} at {HOME}, where the agent would have to be; set {ALLOW_IMAGE} to \
             \"false\" there, or mount it elsewhere",
            excerpt(&mount["name"].to_string())
        ));
    }
    start(agent).ok_or_else(|| {
        format!(
            "and pod definition {name:?} starts its agent in a way of its own, which would be lost; set {ALLOW_IMAGE} to \
             \"false\" there, or make start a word of its own in command or args"
        )
    })
}

/// The agent's binary where the definition names its path, and what the agent gets, from `start` on; what is before that is
/// in the image of the definition. `None` if the definition's command does not say.
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

/// A path of the definition stays if it is on a volume, or from a source that is not known here. Any other one is in the
/// image of the definition.
fn set_paths(agent: &mut Value, definition: &PodDefinition) {
    let mounts = definition.agent()["volumeMounts"].as_array().into_iter().flatten();
    let folders: Vec<_> = mounts.filter_map(|mount| mount["mountPath"].as_str()).chain([HOME]).collect();
    let stays = |own: &Value| {
        let path = own["value"].as_str().map(Path::new);
        !own["valueFrom"].is_null() || path.is_some_and(|path| folders.iter().any(|folder| path.starts_with(folder)))
    };
    let env = list(agent, "env");
    for (variable, path) in PATHS {
        let ours = json!({"name": variable, "value": format!("{HOME}/{path}")});
        match env.iter_mut().find(|own| own["name"] == variable) {
            Some(own) if stays(own) => {}
            Some(own) => *own = ours,
            None => env.push(ours),
        }
    }
}

/// A list of the object, empty if it is absent.
fn list<'a>(object: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    let list = &mut object[field];
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().expect("what is not a list was refused when the definition was loaded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::definition::fixtures::{annotated, definition, for_step, template};

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
        let image = "registry.example:5000/node:24";
        let rules = [&*format!("image={image}"), "cpu=1"];
        let spec = &for_step(&rules, &definition(&template)).unwrap()["spec"];
        let resources = json!({"requests": {"cpu": "1"}});
        assert_eq!(
            spec["initContainers"],
            json!([
                {
                    "name": "agent-scheduler-copy-agent", "image": "agent:4", "imagePullPolicy": "Always",
                    "command": ["/bin/sh", "-c", COPY_SCRIPT, "agent-scheduler-copy-agent"],
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
                "command": ["/bin/sh", "-c", START_SCRIPT, "buildkite-agent"], "args": ["start", "--no-color"],
                "securityContext": {"runAsUser": 1000}, "resources": resources,
                "env": [
                    {"name": "BUILDKITE_HOOKS_PATH", "value": "/buildkite/hooks"},
                    {"name": "BUILDKITE_PLUGINS_PATH", "value": "/buildkite/cache/plugins"},
                    {"name": "BUILDKITE_AGENT_CONFIG", "value": "/buildkite/buildkite-agent.cfg"},
                    {"name": "BUILDKITE_BUILD_PATH", "value": "/buildkite/builds"},
                    {"name": "BUILDKITE_SOCKETS_PATH", "value": "/buildkite/sockets"},
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
        let spec = &for_step(&["image=node:24"], &definition(&template)).unwrap()["spec"];
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
            let spec = &for_step(&["image=node:24"], &definition(&template)).unwrap()["spec"];
            let env = spec["containers"][0]["env"].as_array().unwrap();
            assert_eq!((&env[1], env.len()), (&expected, 7), "{own}");
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
                json!(["--name", "start"]),
                Ok((none, json!(["start", "--name", "start"]))),
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
            let changed = for_step(&["image=node:24"], &definition(&template));
            let Ok((binary, arguments)) = expected else {
                let error = changed.unwrap_err();
                assert!(error.contains("pod definition \"example\" starts its agent in a way of its own"), "{error}");
                continue;
            };
            let spec = &changed.unwrap()["spec"];
            assert_eq!(spec["containers"][0]["args"], arguments, "{command}");
            assert_eq!(spec["initContainers"][0]["command"].get(4).and_then(Value::as_str), binary, "{command}");
        }
    }

    #[test]
    fn an_image_that_the_agent_cannot_be_put_into_is_refused() {
        let at = |path: &str| json!([{"name": "builds", "mountPath": path}]);
        let forbidden = json!({ALLOW_IMAGE: "false"});
        let cases = [
            ("node 24", json!(null), json!(null), ", which is not the reference of an image"),
            (
                "node:24",
                json!(null),
                at("/buildkite"),
                ", and pod definition \"example\" mounts \"builds\" at /buildkite",
            ),
            (
                "node:24",
                json!(null),
                at("/buildkite/"),
                ", and pod definition \"example\" mounts \"builds\" at /buildkite",
            ),
            (
                "node:24",
                forbidden,
                json!(null),
                ", and pod definition \"example\" allows no other image (agent-scheduler.buildkite.com/allow-image is \"false\")",
            ),
        ];
        for (image, annotations, mounts, problem) in cases {
            let mut template = template();
            template["spec"]["containers"][0]["volumeMounts"] = mounts;
            let error = for_step(&[&format!("image={image}")], &annotated(&template, &annotations)).unwrap_err();
            assert!(error.starts_with(&format!("the step asks for image={image}{problem}")), "{error}");
        }
        for_step(&["image=node:24"], &annotated(&template(), &json!({ALLOW_IMAGE: "true"}))).unwrap();
    }

    #[test]
    fn a_pod_that_does_not_run_on_linux_gets_no_other_image() {
        let mut template = template();
        template["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"});
        let error = for_step(&["image=node:24"], &definition(&template)).unwrap_err();
        let expected = "the step asks for image=node:24, and pod definition \"example\" is for another system than Linux \
                        (nodeSelector[kubernetes.io/os]), where the agent cannot be copied";
        assert!(error.starts_with(expected), "{error}");
        for_step(&["cpu=1"], &definition(&template)).unwrap();
    }
}
