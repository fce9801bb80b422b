//! A real Kubernetes control plane on loopback: etcd, kube-apiserver, kube-controller-manager, and aws-iam-authenticator.
//!
//! ```text
//!   Function ──EKS token──> kube-apiserver ──TokenReview──> aws-iam-authenticator ──GetCallerIdentity──> Sts (stand-in)
//!                              │      ^
//!                            etcd     └── kube-controller-manager: Jobs become Pods, and end
//! ```
//!
//! Without scheduler and nodes a Pod stays pending until a test writes its status; [`Node`](crate::Node) adds both. Everything ends
//! with this process.

mod files;
mod programs;
pub(crate) mod supervisor;

use std::{
    fmt::Write,
    fs, io,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::{
    process::Command as AsyncCommand,
    runtime::{self, Runtime},
    sync::OnceCell,
    time::sleep,
};

use self::{files::Endpoints, programs::Programs, supervisor::Supervisor};
use crate::{
    Lab,
    certificates::Certificates,
    client::Client,
    credentials::random_hex,
    kubernetes::NAMESPACE,
    server::{Server, Service},
    sts::Sts,
};

/// The permissions of the function.
const ROLE_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../buildkite-role.yaml");

/// How long to wait; the start takes ten seconds.
const TIMEOUT: Duration = Duration::from_mins(3);

/// How long a test waits for what must happen: an agent tries for minutes.
const MAX_WAIT: Duration = Duration::from_mins(10);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// How many lines of a program's output are shown when it fails.
const LAST_LINES: usize = 15;

/// A running control plane; a drop ends it and removes its folder.
pub struct ControlPlane {
    ip: IpAddr,
    url: String,
    certificates: Certificates,
    admin_token: String,
    programs: Programs,
    sts: Sts,
    // In the order of the drops: the programs, their folder, the threads of the stand-in.
    running: Vec<Running>,
    folder: PathBuf,
    _folder: Supervisor,
    runtime: Background,
}

/// The cluster of `lab run` and of the benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ClusterKind {
    /// The lab's own stand-in for an API server.
    #[default]
    StandIn,
    /// A real control plane on this machine, without nodes; built first if need be, which takes minutes.
    Real,
}

/// Why a control plane cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// kubectl failed on a manifest.
    #[error("cannot apply {0}: {1}")]
    Apply(String, String),
    /// `tests/control-plane/build` failed and printed why.
    #[error("there are no programs for a control plane: tests/control-plane/build failed ({0})")]
    NoPrograms(ExitStatus),
    /// `tests/node/images` failed and printed why.
    #[error("there are no images for the pods of a node: tests/node/images failed ({0})")]
    NoImages(ExitStatus),
    /// A program, a file or a port that the lab needs.
    #[error("the control plane cannot be set up: {0}")]
    Io(#[from] io::Error),
    /// A program ended.
    #[error("{0} ended ({1}); its last lines:\n{2}")]
    Ended(&'static str, String, String),
    /// The programs run, and are not ready.
    #[error("{0} in time; the last lines of the programs:\n{1}")]
    NotReady(&'static str, String),
}

pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) log: PathBuf,
    pub(crate) supervisor: Supervisor,
}

/// Own threads: a control plane that several tests share outlives the runtime of each.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl ControlPlane {
    /// Starts the programs, which are built first if this machine has none; returns when Jobs become Pods.
    pub async fn start() -> Result<Self, Problem> {
        Self::start_on(Ipv4Addr::LOCALHOST.into()).await
    }

    /// On another address of this machine, which a node can reach.
    pub(crate) async fn start_on(ip: IpAddr) -> Result<Self, Problem> {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let runtime = Background(Some(runtime));
        let programs =
            tokio::task::spawn_blocking(Programs::find).await.expect("finding the programs does not panic")?;

        let folder = supervisor::folder(&format!("agent-scheduler-control-plane-{}", random_hex::<6>()))?;
        let folder_supervisor = Supervisor::remove(&folder)?;
        let certificates = Certificates::new(ip);
        let [etcd, api_server, authenticator] = free_ports()?;
        let url = format!("https://{ip}:{api_server}");
        let authenticator_url = format!("https://127.0.0.1:{authenticator}");
        let admin_token = files::write(&Endpoints {
            folder: &folder,
            certificates: &certificates,
            api_server: &url,
            authenticator: &authenticator_url,
        })?;
        let sts = {
            let _within = runtime.0.as_ref().map(Runtime::enter);
            Sts::start(&certificates).await?
        };

        let launch = Launch { programs: &programs, folder: &folder, ip };
        let mut running = vec![
            launch.etcd(etcd)?,
            launch.authenticator(authenticator, sts.url())?,
            launch.api_server(api_server, etcd)?,
        ];
        let ca_pem = certificates.ca_pem();
        let ok = async |url: &str, path: &str| answers(url, &ca_pem, path, &admin_token).await;
        let authenticator_ok = async || ok(&authenticator_url, "/healthz").await;
        wait_for("the authenticator did not answer", &mut running, authenticator_ok).await?;
        wait_for("the API server was not ready", &mut running, async || ok(&url, "/readyz").await).await?;
        running.push(launch.controller_manager()?);
        // A controller makes it, and every Pod requires it.
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        wait_for("the controllers did not work", &mut running, async || ok(&url, account).await).await?;
        Ok(Self {
            ip,
            url,
            certificates,
            admin_token,
            programs,
            sts,
            running,
            folder,
            _folder: folder_supervisor,
            runtime,
        })
    }

    /// Lets Pods be bound to nodes.
    pub(crate) fn start_scheduler(&mut self) -> io::Result<()> {
        let launch = Launch { programs: &self.programs, folder: &self.folder, ip: self.ip };
        self.running.push(launch.scheduler()?);
        Ok(())
    }

    /// The same with the namespace and the permissions that the function needs.
    pub async fn start_for_function() -> Result<Self, Problem> {
        let control_plane = Self::start().await?;
        control_plane.make_namespace(NAMESPACE).await;
        control_plane.apply_role_file(false, NAMESPACE).await?;
        Ok(control_plane)
    }

    /// Its threads answer the requests.
    pub(crate) async fn serve(&self, service: Service) -> Server {
        let _within = self.runtime.0.as_ref().map(Runtime::enter);
        Server::listen(self.ip, None, service).await
    }

    /// The control plane that all tests of a process share.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<ControlPlane, Problem>> = OnceCell::const_new();
        match SHARED.get_or_init(Self::start).await {
            Ok(control_plane) => control_plane,
            Err(problem) => panic!("no control plane: {problem}"),
        }
    }

    /// A lab whose functions use this control plane, with keys that its authenticator accepts.
    pub async fn lab(&self) -> Lab {
        let mut lab = Lab::start_on(self.ip).await;
        lab.set_endpoint(self.url.clone(), self.certificates.ca_data());
        self.sts.know(lab.verifier(), lab.timeline.clone());
        lab
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.path(name)
    }

    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// One of its files; `etcd` is the folder of all objects.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A client with all permissions.
    pub async fn admin(&self) -> Client {
        self.client(&self.admin_token).await
    }

    /// A client with this bearer token.
    pub async fn client(&self, token: &str) -> Client {
        let client = Client::connect(&self.url, &self.certificates.ca_pem()).await;
        client.expect("the API server takes connections").with_token(token).connecting_again()
    }

    /// Creates a namespace, and returns when Pods can be created in it.
    pub async fn make_namespace(&self, name: &str) {
        let mut admin = self.admin().await;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let (status, answer) = admin.post("/api/v1/namespaces", &namespace).await;
        assert_eq!(status, 201, "{answer}");
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        eventually("the namespace has no service account", async || {
            (self.admin().await.get(&account).await.0 == 200).then_some(())
        })
        .await;
    }

    /// `kubectl apply -f FILE --namespace NAMESPACE`, as the administrator.
    pub async fn apply(&self, file: &str, namespace: &str) -> Result<(), Problem> {
        self.apply_by(&["-f", file], namespace).await
    }

    /// The same with `-k`, for a folder with a `kustomization.yaml`.
    pub async fn apply_folder(&self, folder: &str, namespace: &str) -> Result<(), Problem> {
        self.apply_by(&["-k", folder], namespace).await
    }

    /// The function's permissions, for the agent token or for job tokens.
    pub async fn apply_role_file(&self, job_tokens: bool, namespace: &str) -> Result<(), Problem> {
        let selector = format!("agent-scheduler.buildkite.com/job-tokens!={}", !job_tokens);
        self.apply_by(&["-f", ROLE_FILE, "--selector", &selector], namespace).await
    }

    async fn apply_by(&self, what: &[&str], namespace: &str) -> Result<(), Problem> {
        let mut kubectl = AsyncCommand::new(self.programs.path("kubectl"));
        kubectl.env_clear().env("HOME", &self.folder).env("KUBECONFIG", self.kubeconfig());
        kubectl.args(["apply", "--validate=strict", "--namespace", namespace]).args(what);
        let applied = kubectl.kill_on_drop(true).output().await?;
        if applied.status.success() {
            return Ok(());
        }
        Err(Problem::Apply(what.join(" "), String::from_utf8_lossy(&applied.stderr).into_owned()))
    }

    /// Runs lines of a shell with kubectl as the administrator, in this folder.
    pub async fn shell(&self, script: &str, folder: &str) -> Result<(), Problem> {
        let kubectl = self.programs.path("kubectl");
        let path = format!("{}:/usr/bin:/bin", kubectl.parent().unwrap_or(&self.folder).display());
        let mut bash = AsyncCommand::new("bash");
        bash.env_clear().env("HOME", &self.folder).env("KUBECONFIG", self.kubeconfig()).env("PATH", path);
        bash.args(["-euo", "pipefail", "-c", script]).current_dir(folder);
        let ran = bash.kill_on_drop(true).output().await?;
        if ran.status.success() {
            return Ok(());
        }
        Err(Problem::Apply(script.to_owned(), String::from_utf8_lossy(&ran.stderr).into_owned()))
    }

    /// The audit log of a namespace; requests about Jobs with their bodies.
    pub fn audit(&self, namespace: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.folder.join("audit.log")).unwrap_or_default();
        let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries.filter(|entry| entry["objectRef"]["namespace"] == namespace).collect()
    }

    /// The output of a program so far; `aws-iam-authenticator` logs why it refuses a token.
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{program}.log"))).unwrap_or_default()
    }
}

/// Waits until `look` returns something; panics after a long time.
pub async fn eventually<T>(missing: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < MAX_WAIT, "{missing} after {} s", MAX_WAIT.as_secs());
        sleep(PAUSE).await;
    }
}

/// Starts the programs. Their files are relative to the folder.
struct Launch<'a> {
    programs: &'a Programs,
    folder: &'a Path,
    ip: IpAddr,
}

impl Launch<'_> {
    fn etcd(&self, port: u16) -> io::Result<Running> {
        let url = format!("http://127.0.0.1:{port}");
        // Nothing has to survive, so without fsync.
        let arguments = format!(
            "--listen-client-urls={url} --advertise-client-urls={url} --listen-peer-urls=http://127.0.0.1:0
             --data-dir=etcd --unsafe-no-fsync"
        );
        self.run("etcd", &arguments, &[])
    }

    fn api_server(&self, port: u16, etcd: u16) -> io::Result<Running> {
        // A loopback address cannot be an endpoint of the `kubernetes` Service, so without a reconciler.
        let arguments = format!(
            "--etcd-servers=http://127.0.0.1:{etcd} --bind-address={} --secure-port={port}
             --kubelet-preferred-address-types=InternalIP --tls-cert-file=server.pem --tls-private-key-file=server-key.pem
             --endpoint-reconciler-type=none --service-cluster-ip-range=10.0.0.0/24
             --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=service-account.pem
             --service-account-signing-key-file=service-account-key.pem
             --authorization-mode=Node,RBAC --allow-privileged --token-auth-file=tokens.csv
             --authentication-token-webhook-config-file=authenticator.kubeconfig
             --audit-policy-file=audit-policy.yaml --audit-log-path=audit.log",
            self.ip
        );
        self.run("kube-apiserver", &arguments, &[])
    }

    fn controller_manager(&self) -> io::Result<Running> {
        // Not the default of 20 requests a second: some tests make hundreds of Jobs.
        let arguments = "--kubeconfig=manager.kubeconfig --secure-port=0 --leader-elect=false --root-ca-file=ca.pem
                         --kube-api-qps=500 --kube-api-burst=1000";
        self.run("kube-controller-manager", arguments, &[])
    }

    fn scheduler(&self) -> io::Result<Running> {
        self.run("kube-scheduler", "--kubeconfig=scheduler.kubeconfig --secure-port=0 --leader-elect=false", &[])
    }

    fn authenticator(&self, port: u16, sts: &str) -> io::Result<Running> {
        let arguments = format!(
            "server --config=authenticator.yaml --state-dir=authenticator --kubeconfig-pregenerated
             --address=127.0.0.1 --port={port}"
        );
        let variables = [("HTTPS_PROXY", sts), ("SSL_CERT_FILE", "ca.pem"), ("AWS_EC2_METADATA_DISABLED", "true")];
        self.run("aws-iam-authenticator", &arguments, &variables)
    }

    fn run(&self, name: &'static str, arguments: &str, variables: &[(&str, &str)]) -> io::Result<Running> {
        let log = self.folder.join(format!("{name}.log"));
        let mut command = Command::new(self.programs.path(name));
        command.args(arguments.split_whitespace()).envs(variables.iter().copied());
        Ok(Running { name, supervisor: Supervisor::run(&command, &log)?, log })
    }
}

/// Waits until `ready`, while all programs run.
pub(crate) async fn wait_for(
    what: &'static str,
    running: &mut [Running],
    mut ready: impl AsyncFnMut() -> bool,
) -> Result<(), Problem> {
    let started = Instant::now();
    while !ready().await {
        for program in &mut *running {
            if let Some(status) = program.supervisor.ended()? {
                return Err(Problem::Ended(program.name, status, program.last_lines()));
            }
        }
        if started.elapsed() > TIMEOUT {
            let said = running.iter().fold(String::new(), |mut text, program| {
                let _ = writeln!(text, "{}:\n{}", program.name, program.last_lines());
                text
            });
            return Err(Problem::NotReady(what, said));
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

impl Running {
    fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// Whether the answer is a success.
async fn answers(url: &str, ca_pem: &str, path: &str, token: &str) -> bool {
    let Ok(client) = Client::connect(url, ca_pem).await else { return false };
    client
        .with_token(token)
        .try_send(hyper::Request::get(path), "")
        .await
        .is_ok_and(|response| response.status().is_success())
}

/// Free ports. All are held until each is known, so that no two are the same.
fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
