//! Checkouts in real pods: the definitions of `docs/private-repositories.md`, and images of steps as they are.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use futures_util::future::join_all;
use http::Uri;
use lab::{Event, control_plane::eventually};
use serde_json::{Value, json};

use super::{
    namespace::{self, Namespace, name},
    scene::{Run, Scene, define},
};

/// `x-access-token:bk-git-password`, as a client of HTTP sends it.
const AUTHORIZATION: &str = "authorization: Basic eC1hY2Nlc3MtdG9rZW46YmstZ2l0LXBhc3N3b3Jk";

/// A repository with one commit on `main`, at a git host that wants a user and a password; returns its address without both.
fn repository(scene: &Scene) -> String {
    let folder = scene.node.folder().join(format!("{}-git", scene.namespace.name));
    let script = "git init --quiet --initial-branch main work && cd work && echo 'checked out' >file && git add file &&
        git -c user.name=lab -c user.email=lab@example.com commit --quiet --message first && cd .. &&
        git clone --quiet --bare work repository && git -C repository update-server-info";
    fs::create_dir(&folder).unwrap();
    assert!(Command::new("sh").args(["-ec", script]).current_dir(&folder).status().unwrap().success());
    // Where the pods reach Buildkite.
    let buildkite: Uri = scene.namespace.lab.buildkite.url().parse().unwrap();
    let listener = TcpListener::bind((buildkite.host().unwrap(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let folder = folder.clone();
            thread::spawn(move || serve(&stream.unwrap(), &folder));
        }
    });
    format!("http://{address}/repository")
}

/// Answers one request, as a server of files.
fn serve(mut stream: &TcpStream, folder: &Path) {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let lines: Vec<_> = lines.collect();
    let path = lines[0].split([' ', '?']).nth(1).unwrap().trim_start_matches('/');
    let is_known = lines.iter().any(|line| line.eq_ignore_ascii_case(AUTHORIZATION));
    let (status, body) = match fs::read(folder.join(path)) {
        _ if !is_known => ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"", Vec::new()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    // A client may close the connection early.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

impl Scene {
    /// A job with a checkout.
    async fn check_out(&self, repository: &str, command: &str, rules: &[&str]) -> Run {
        let repository = repository.to_owned();
        let change = |event: Event| {
            event.detail(|detail| {
                detail["build"]["commit"] = "HEAD".into();
                detail["pipeline"]["repo"] = repository.into();
            })
        };
        self.send_with(command, rules, change, &[("BUILDKITE_SKIP_CHECKOUT", "false")]).await
    }

    /// Applies a definition of the page about private repositories.
    async fn define_of_page(&mut self, name: &str) {
        let page = fs::read_to_string("docs/private-repositories.md").unwrap();
        let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
        let mut manifests = blocks.map(|yaml| serde_saphyr::from_str::<Value>(yaml).unwrap());
        let manifest = manifests.find(|manifest| self::name(manifest) == name).unwrap();
        define(&mut self.namespace, name, |spec| {
            let of_lab = spec["containers"][0]["env"].take();
            *spec = manifest["template"]["spec"].clone();
            spec["containers"][0]["env"].as_array_mut().unwrap().extend(of_lab.as_array().unwrap().iter().cloned());
        })
        .await;
    }

    /// Makes a Secret or a `ConfigMap` with one key.
    async fn put(&mut self, resource: &str, name: &str, field: &str, key: &str, value: &str) {
        let object = json!({"metadata": {"name": name}, field: {key: value}});
        let path = self.namespace.path(resource);
        namespace::ok(self.namespace.admin.post(&path, &object).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_checked_out_by_https_with_and_without_an_image_of_the_step() {
    let mut scene = Scene::new().await;
    let repository = repository(&scene);
    let credentials = repository.replace("http://", "http://x-access-token:bk-git-password@");
    scene.put("secrets", "git-https", "stringData", ".git-credentials", &credentials.replace("/repository", "")).await;
    scene.define_of_page("git-https").await;
    join_all([&[][..], &["image=lab/bash-git:1"], &["image=lab/user:1"]].map(async |image| {
        let rules = [&["pod-definition=git-https"], image].concat();
        scene.check_out(&repository, "test \"$(cat file)\" = 'checked out'", &rules).await.until_passed().await;
    }))
    .await;
}

/// A hook of a `ConfigMap` stands for all: it is run, and sees the mounted Secret, with and without bash.
#[tokio::test(flavor = "multi_thread")]
async fn a_hook_of_a_config_map_runs_with_and_without_an_image_of_the_step() {
    let mut scene = Scene::new().await;
    let hook = "#!/bin/sh\nexport KEY=\"$(cat /git/$BUILDKITE_PIPELINE_SLUG)\"\n";
    scene.put("configmaps", "buildkite-hooks", "data", "environment", hook).await;
    scene.put("secrets", "git-keys", "stringData", "example-pipeline", "key of its pipeline").await;
    scene.define_of_page("git-hooks").await;
    join_all([&[][..], &["image=lab/bash-git:1"], &["image=lab/git:1"]].map(async |image| {
        let rules = [&["pod-definition=git-hooks"], image].concat();
        scene.send("test \"$KEY\" = 'key of its pipeline'", &rules).await.until_passed().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ssh_files_of_the_variables_are_there_with_and_without_an_image_of_the_step() {
    let mut scene = Scene::new().await;
    scene.put("secrets", "git-ssh", "stringData", "SSH_PRIVATE_ED25519_KEY", "first line\nlast line").await;
    scene.define_of_page("git-ssh").await;
    join_all([&[][..], &["image=lab/bash-git:1"], &["image=lab/busybox:1"]].map(async |image| {
        let rules = [&["pod-definition=git-ssh"], image].concat();
        let command = "test \"$(tail -n 1 ~/.ssh/id_ed25519)\" = 'last line'; stat -c %a ~/.ssh/id_ed25519";
        let run = scene.send(command, &rules).await;
        run.until_passed().await;
        assert!(run.log().lines().any(|line| line.trim_end().ends_with("600")), "{}", run.log());
    }))
    .await;
}

/// Without a second try, and the log says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_at_once_in_an_image_without_git_and_with_a_hook_for_bash_without_bash() {
    let mut scene = Scene::new().await;
    let run = scene.check_out("http://example.invalid/repository", "true", &["image=lab/bash:1"]).await;
    run.until_ended().await;
    assert_ne!(run.job().exit_status, Some(0));
    assert!(run.log().contains("\"git\": executable file not found in $PATH"), "{}", run.log());
    assert_eq!(run.log().matches("git clone").count(), 1, "{}", run.log());

    scene.put("configmaps", "buildkite-hooks", "data", "environment", "#!/bin/bash\n").await;
    scene.put("secrets", "git-keys", "stringData", "web", "").await;
    scene.define_of_page("git-hooks").await;
    let run = scene.send("true", &["pod-definition=git-hooks", "image=lab/git:1"]).await;
    run.until_ended().await;
    assert_ne!(run.job().exit_status, Some(0));
    assert!(run.log().contains("interpreter \"/bin/bash\" is missing"), "{}", run.log());
}

/// As with `runAsUser`, and with what a step writes into its home.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_home_gets_one() {
    let mut scene = Scene::new().await;
    define(&mut scene.namespace, "user", |spec| spec["securityContext"] = json!({"runAsUser": 4321})).await;
    join_all(["image=lab/bash-git:1", "image=lab/busybox:1"].map(async |image| {
        let run = scene.send("cd ~ && touch here && id -u", &["pod-definition=user", image]).await;
        run.until_passed().await;
        assert!(run.log().lines().any(|line| line.trim_end().ends_with("4321")), "{}", run.log());
    }))
    .await;
}

/// `docs/headroom.yaml`: the scheduler removes a pod that holds the room which a job needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_takes_the_place_of_a_pod_that_holds_room() {
    const ROOM: &str = "example.com/headroom";
    let mut scene = Scene::new().await;
    scene.node.offer(ROOM, 1).await;
    let yaml = fs::read_to_string("docs/headroom.yaml").unwrap();
    // This node has room for all, so another resource stands for it.
    let yaml = yaml
        .replace("replicas: 2", "replicas: 1")
        .replace("cpu: 500m", "cpu: 10m")
        .replace("memory: 1Gi", &format!("{ROOM}: 1"));
    let file = scene.node.folder().join(format!("{}.yaml", scene.namespace.name));
    fs::write(&file, yaml).unwrap();
    scene.namespace.control_plane.apply(file.to_str().unwrap(), &scene.namespace.name).await.unwrap();
    let running = async |namespace: &mut Namespace| {
        let pods = namespace.list("pods").await;
        pods.into_iter().find(|pod| pod["spec"]["priority"] == -10 && pod["status"]["phase"] == "Running")
    };
    let first = eventually("no pod holds room", async || running(&mut scene.namespace).await).await;
    define(&mut scene.namespace, "room", |spec| spec["containers"][0]["resources"]["limits"][ROOM] = json!(1)).await;
    let run = scene.send("true", &["pod-definition=room"]).await;
    run.until_passed().await;
    // Its successor waits for the room.
    let second = eventually("no pod holds room again", async || running(&mut scene.namespace).await).await;
    assert_ne!(name(&first), name(&second));
}
