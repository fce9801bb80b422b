//! A real node beside a [`ControlPlane`]: containerd, runc, the plugins of CNI, kubelet, and kube-scheduler.
//!
//! ```text
//!   kube-apiserver <── kubelet ──> containerd ──> runc: the pod of a job, with the real agent
//!                                                          │ a bridge, and no other route
//!   Buildkite and a registry <── an interface of this machine ─┘
//! ```
//!
//! The node lives in namespaces of its own (processes, mounts, network), and sees copies of the kernel settings that a kubelet changes.
//! So nothing is left when it ends, and it ends with this process. It needs root, and Debian's containerd, runc and
//! containernetworking-plugins.

mod registry;
mod watch;

use std::{
    fs, io,
    net::{IpAddr, TcpListener},
    ops::Deref,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    sync::OnceCell,
    task::{JoinSet, spawn_blocking},
};

use crate::{
    Actor, Timeline,
    control_plane::{
        ControlPlane, Problem, Running,
        supervisor::{self, Supervisor},
        wait_for,
    },
    credentials::random_hex,
    server::{Server, Service},
};

/// Makes the images of the pods, if this machine has none.
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/images");

/// Runs in the namespaces of the node.
const START: &str = include_str!("node/start.sh");

/// Opens the network namespace of this machine, and starts the node in others.
const UNSHARE: &str = "exec 4</proc/self/ns/net; \
                       exec unshare --mount --pid --net --ipc --uts --fork --kill-child --mount-proc bash start.sh \"$@\"";

/// Where the plugins of CNI are on Debian.
const PLUGINS: &str = "/usr/lib/cni";

/// A control plane with a node that is ready. Everything ends with this process.
pub struct Node {
    // In the order of the drops: the node, then what it uses and leaves.
    _running: Vec<Running>,
    _registry: Server,
    control_plane: ControlPlane,
    folder: PathBuf,
    _cgroups: Supervisor,
    _folder: Supervisor,
}

impl Node {
    /// Starts both; the programs and the images are built first if this machine has none.
    pub async fn start() -> Result<Self, Problem> {
        let images = spawn_blocking(images).await.expect("finding the images does not panic")?;
        let id = random_hex::<4>();
        let (name, interface) = (format!("agent-scheduler-node-{id}"), format!("node-{id}"));
        let folder = supervisor::folder(&name)?;
        let folder_supervisor = Supervisor::remove(&folder)?;
        let cgroups = Supervisor::remove_cgroup(&name)?;
        let (network, ip) = free_network();
        write_files(&folder, &name, &network)?;

        let mut command = Command::new("bash");
        command.args(["-c", UNSHARE, "node", &interface, &network, &name]).arg(images);
        let log = folder.join("node.log");
        let mut running = vec![Running { name: "node", supervisor: Supervisor::run(&command, &log)?, log }];
        wait_for("the node has no network", &mut running, async || TcpListener::bind((ip, 0)).is_ok()).await?;

        let mut control_plane = ControlPlane::start_on(ip).await?;
        control_plane.start_scheduler()?;
        let registry = control_plane.serve(Service::new(Actor::Test, registry::routes(), &Timeline::start())).await;
        let hosts = folder.join("registries").join(registry::NAME);
        fs::create_dir_all(&hosts)?;
        // Without a server of its own the registry's name is tried, too.
        fs::write(hosts.join("hosts.toml"), format!("server = {0:?}\n[host.{0:?}]\n", registry.url()))?;
        symlink(control_plane.program("kubelet"), folder.join("kubelet"))?;
        fs::copy(control_plane.file("node.kubeconfig"), folder.join(".node.kubeconfig"))?;
        fs::rename(folder.join(".node.kubeconfig"), folder.join("node.kubeconfig"))?;
        let mut admin = control_plane.admin().await;
        wait_for("the node was not ready", &mut running, async || is_ready(&admin.get("/api/v1/nodes/node").await.1))
            .await?;
        Ok(Self {
            _running: running,
            _registry: registry,
            control_plane,
            folder,
            _cgroups: cgroups,
            _folder: folder_supervisor,
        })
    }

    /// The node that all tests of a process share.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<Node, Problem>> = OnceCell::const_new();
        match SHARED.get_or_init(Self::start).await {
            Ok(node) => node,
            Err(problem) => panic!("no node: {problem}"),
        }
    }

    /// Gives the node a label.
    pub async fn label(&self, label: &str, value: &str) {
        let labels = json!({"metadata": {"labels": {label: value}}});
        let (status, answer) = self.admin().await.patch("/api/v1/nodes/node", &labels).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Lets the node offer an amount of an extended resource, such as `example.com/rooms`.
    pub async fn offer(&self, resource: &str, amount: u32) {
        let capacity = json!({"status": {"capacity": {resource: amount.to_string()}}});
        let (status, answer) = self.admin().await.patch("/api/v1/nodes/node/status", &capacity).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// The folder of its files, which ends with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the containers of a namespace printed, as far as the node still has it; each line with its time.
    pub fn logs(&self, namespace: &str) -> String {
        let files = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let pods = files(&self.folder.join("pod-logs"));
        let pods = pods.filter(|pod| pod.file_name().is_some_and(|name| name.to_string_lossy().starts_with(namespace)));
        let logs = pods
            .flat_map(|pod| files(&pod).collect::<Vec<_>>())
            .flat_map(|container| files(&container).collect::<Vec<_>>());
        logs.fold(String::new(), |text, log| {
            text + &format!("{}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default())
        })
    }

    /// Records what happens to the Jobs and Pods of a namespace, until the set is dropped.
    pub async fn watch(&self, namespace: &str, timeline: &Timeline) -> JoinSet<()> {
        let mut watching = JoinSet::new();
        for (group, resource) in [("api/v1", "pods"), ("apis/batch/v1", "jobs")] {
            let path = format!("/{group}/namespaces/{namespace}/{resource}?watch=true");
            let (client, timeline) = (self.admin().await, timeline.clone());
            watching.spawn(async move { watch::watch(client, &path, &timeline).await });
        }
        watching
    }
}

impl Deref for Node {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.control_plane
    }
}

fn images() -> Result<PathBuf, Problem> {
    let made = Command::new(IMAGES).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !made.status.success() {
        return Err(Problem::NoImages(made.status));
    }
    Ok(String::from_utf8_lossy(&made.stdout).trim().into())
}

/// The first three numbers of a network, and its address of this machine. From a range for benchmarks, which no network has.
fn free_network() -> (String, IpAddr) {
    loop {
        let network = format!("198.18.{}", fastrand::u8(1..255));
        let ip = format!("{network}.1").parse().expect("an address");
        if TcpListener::bind((ip, 0)).is_err() {
            return (network, ip);
        }
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn write_files(folder: &Path, cgroup: &str, network: &str) -> io::Result<()> {
    fs::write(folder.join("start.sh"), START)?;
    fs::write(folder.join("containerd.toml"), containerd(folder))?;
    fs::write(folder.join("kubelet.json"), kubelet(folder, cgroup, network).to_string())?;
    fs::create_dir(folder.join("cni"))?;
    fs::write(folder.join("cni/pods.conflist"), plugins(folder, network).to_string())
}

fn containerd(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/lab/pause:1"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{folder}/registries"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

fn kubelet(folder: &Path, cgroup: &str, network: &str) -> Value {
    let folder = folder.display();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{folder}/containerd.sock"),
        "podLogsDir": format!("{folder}/pod-logs"),
        "volumePluginDir": format!("{folder}/volume-plugins"),
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "resolvConf": "",
        // Without one each pod has a warning. This is the node, which has none and says so at once.
        "clusterDNS": [format!("{network}.2")],
        // A pull that takes long is one of many.
        "serializeImagePulls": false,
        // What the machine has left is not the node's affair, and its images are not to be removed.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
    })
}

fn plugins(folder: &Path, network: &str) -> Value {
    let range = json!({"subnet": format!("{network}.0/24"), "rangeStart": format!("{network}.10")});
    let ipam = json!({"type": "host-local", "dataDir": folder.join("addresses"), "ranges": [[range]]});
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods", "ipam": ipam}]})
}
