//! A real Kubernetes control plane on loopback: etcd, kube-apiserver, kube-controller-manager, and aws-iam-authenticator.
//!
//! ```text
//!   Function ──EKS token──> kube-apiserver ──TokenReview──> aws-iam-authenticator ──GetCallerIdentity──> Sts (stand-in)
//!                              │      ^
//!                            etcd     └── kube-controller-manager: Jobs become Pods, and end
//! ```
//!
//! There is no scheduler and no node: a Pod stays pending until a test writes its status. Everything ends with this process.

mod caller;
mod files;
mod keeper;
mod programs;

use std::{
    fmt::Write,
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    process::Command as AsyncCommand,
    runtime::{self, Runtime},
    sync::OnceCell,
    time::sleep,
};

use self::{files::Site, keeper::Keeper, programs::Programs};
use crate::{Lab, certificates::Certificates, client::Client, credentials::random_hex, sts::Sts};

pub use self::caller::Caller;

/// After this long something is broken, and we say so. It takes some ten seconds.
const PATIENCE: Duration = Duration::from_mins(3);

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(50);

/// How much of a program's output is shown when it fails.
const LAST_LINES: usize = 15;

/// A running control plane; dropping it ends it and leaves nothing behind.
pub struct ControlPlane {
    url: String,
    certificates: Certificates,
    admin_token: String,
    programs: Programs,
    sts: Sts,
    // The order of the drops: first the programs, then their folder, then what the stand-in runs on.
    _running: Vec<Running>,
    folder: PathBuf,
    _folder: Keeper,
    _runtime: Background,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// kubectl refused.
    #[error("kubectl cannot apply {file}: {said}")]
    Apply {
        /// The manifest.
        file: String,
        /// What it said.
        said: String,
    },
    /// `tests/control-plane/build` said why.
    #[error("there are no programs for a control plane; tests/control-plane/build says above what is missing")]
    NoPrograms {
        /// Why the build could not even be started.
        source: Option<io::Error>,
    },
    /// A file or a port that the lab needs.
    #[error("the control plane cannot be set up")]
    Io(#[from] io::Error),
    /// A program ended.
    #[error("{program} ended ({status}); it said last:\n{said}")]
    Ended {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: String,
        /// Its last lines.
        said: String,
    },
    /// It runs, and is of no use.
    #[error("{what} after {} s; what the programs said last:\n{said}", PATIENCE.as_secs())]
    NotReady {
        /// What is still missing.
        what: &'static str,
        /// The last lines of each.
        said: String,
    },
}

struct Running {
    name: &'static str,
    log: PathBuf,
    keeper: Keeper,
}

/// Threads of our own: a control plane that several tests share outlives the runtime of each.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl ControlPlane {
    /// Builds the programs if this machine has none yet, and starts them; returns when Jobs become Pods.
    pub async fn start() -> Result<Self, Problem> {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let runtime = Background(Some(runtime));
        let programs =
            tokio::task::spawn_blocking(Programs::find).await.expect("the look for programs does not panic")?;

        let folder = keeper::folder(&format!("agent-scheduler-control-plane-{}", random_hex::<6>()))?;
        let folder_keeper = Keeper::remove(&folder)?;
        let certificates = Certificates::new(Ipv4Addr::LOCALHOST.into());
        let [etcd, api_server, authenticator] = free_ports()?;
        let url = format!("https://127.0.0.1:{api_server}");
        let authenticator_url = format!("https://127.0.0.1:{authenticator}");
        let admin_token = files::write(&Site {
            folder: &folder,
            certificates: &certificates,
            api_server: &url,
            authenticator: &authenticator_url,
        })?;
        let sts = {
            let _within = runtime.0.as_ref().map(Runtime::enter);
            Sts::start(&certificates).await?
        };

        let launch = Launch { programs: &programs, folder: &folder };
        let mut running = vec![
            launch.etcd(etcd)?,
            launch.authenticator(authenticator, sts.url())?,
            launch.api_server(api_server, etcd)?,
        ];
        let ca_pem = certificates.ca_pem();
        wait_for("the authenticator does not answer", &mut running, async || {
            probe(&authenticator_url, &ca_pem, "/healthz", &admin_token).await
        })
        .await?;
        wait_for("the API server is not ready", &mut running, async || {
            probe(&url, &ca_pem, "/readyz", &admin_token).await
        })
        .await?;
        running.push(launch.controller_manager()?);
        // Made by one of the controllers, and wanted by every Pod.
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        wait_for("the controllers do not work", &mut running, async || {
            probe(&url, &ca_pem, account, &admin_token).await
        })
        .await?;
        Ok(Self {
            url,
            certificates,
            admin_token,
            programs,
            sts,
            _running: running,
            folder,
            _folder: folder_keeper,
            _runtime: runtime,
        })
    }

    /// The one that all tests of a process share.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<ControlPlane, String>> = OnceCell::const_new();
        let start = async || Self::start().await.map_err(|problem| explain(&problem));
        match SHARED.get_or_init(start).await {
            Ok(control_plane) => control_plane,
            Err(problem) => panic!("there is no control plane: {problem}"),
        }
    }

    /// A lab whose functions are led to this control plane, with keys that its authenticator accepts.
    pub async fn lab(&self) -> Lab {
        let mut lab = Lab::start().await;
        lab.set_endpoint(self.url.clone(), self.certificates.ca_data());
        self.sts.know(lab.verifier(), lab.timeline.clone());
        lab
    }

    /// Where the API server is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What its certificate is signed with.
    pub fn ca_pem(&self) -> String {
        self.certificates.ca_pem()
    }

    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// The administrator's bearer token.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Somebody who may do everything.
    pub async fn admin(&self) -> Caller {
        self.caller(&self.admin_token).await
    }

    /// Whoever has this bearer token.
    pub async fn caller(&self, token: &str) -> Caller {
        let client = Client::connect(&self.url, &self.ca_pem()).await.expect("the API server takes connections");
        Caller::new(client, token)
    }

    /// Makes a namespace, and returns when Pods can be made in it.
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
        self.apply_by("-f", file, namespace).await
    }

    /// The same with `-k`, which builds a folder that has a `kustomization.yaml`.
    pub async fn apply_folder(&self, folder: &str, namespace: &str) -> Result<(), Problem> {
        self.apply_by("-k", folder, namespace).await
    }

    async fn apply_by(&self, option: &str, file: &str, namespace: &str) -> Result<(), Problem> {
        let mut kubectl = AsyncCommand::new(self.programs.path("kubectl"));
        kubectl.env_clear().env("HOME", &self.folder).env("KUBECONFIG", self.kubeconfig());
        kubectl.args(["apply", "--validate=strict", option, file, "--namespace", namespace]);
        let applied = kubectl.kill_on_drop(true).output().await?;
        if applied.status.success() {
            return Ok(());
        }
        Err(Problem::Apply { file: file.to_owned(), said: String::from_utf8_lossy(&applied.stderr).into_owned() })
    }

    /// What the API server wrote down about requests to a namespace: those about Jobs with all that was said.
    pub fn audit(&self, namespace: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.folder.join("audit.log")).unwrap_or_default();
        let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries.filter(|entry| entry["objectRef"]["namespace"] == namespace).collect()
    }

    /// What a program printed so far, such as `aws-iam-authenticator` on the tokens that it refused.
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{program}.log"))).unwrap_or_default()
    }
}

/// Looks again and again until there is something to see. Ends the test after a long time, as then something is broken.
pub async fn eventually<T>(missing: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{missing} after {} s", PATIENCE.as_secs());
        sleep(PAUSE).await;
    }
}

/// Starts each program with what a control plane on loopback needs.
struct Launch<'a> {
    programs: &'a Programs,
    folder: &'a Path,
}

impl Launch<'_> {
    fn etcd(&self, port: u16) -> io::Result<Running> {
        let url = format!("http://127.0.0.1:{port}");
        let arguments = [
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
            format!("--data-dir={}", self.file("etcd")),
            // Nothing here needs to survive.
            "--unsafe-no-fsync".to_owned(),
        ];
        self.run("etcd", &arguments, &[])
    }

    fn api_server(&self, port: u16, etcd: u16) -> io::Result<Running> {
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", self.file("server.pem")),
            format!("--tls-private-key-file={}", self.file("server-key.pem")),
            // A loopback address cannot be an endpoint of the `kubernetes` Service.
            "--endpoint-reconciler-type=none".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", self.file("service-account.pem")),
            format!("--service-account-signing-key-file={}", self.file("service-account-key.pem")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged".to_owned(),
            format!("--token-auth-file={}", self.file("tokens.csv")),
            format!("--authentication-token-webhook-config-file={}", self.file("authenticator.kubeconfig")),
            format!("--audit-policy-file={}", self.file("audit-policy.yaml")),
            format!("--audit-log-path={}", self.file("audit.log")),
        ];
        self.run("kube-apiserver", &arguments, &[])
    }

    fn controller_manager(&self) -> io::Result<Running> {
        let arguments = [
            format!("--kubeconfig={}", self.file("manager.kubeconfig")),
            // It serves nobody.
            "--secure-port=0".to_owned(),
            "--leader-elect=false".to_owned(),
            format!("--root-ca-file={}", self.file("ca.pem")),
            // A test that makes hundreds of Jobs shall not wait for the default of 20 requests a second.
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
        ];
        self.run("kube-controller-manager", &arguments, &[])
    }

    fn authenticator(&self, port: u16, sts: &str) -> io::Result<Running> {
        let arguments = [
            "server".to_owned(),
            format!("--config={}", self.file("authenticator.yaml")),
            format!("--state-dir={}", self.file("authenticator")),
            "--kubeconfig-pregenerated".to_owned(),
            "--address=127.0.0.1".to_owned(),
            format!("--port={port}"),
        ];
        let ca = self.file("ca.pem");
        let variables = [("HTTPS_PROXY", sts), ("SSL_CERT_FILE", &ca), ("AWS_EC2_METADATA_DISABLED", "true")];
        self.run("aws-iam-authenticator", &arguments, &variables)
    }

    fn run(&self, name: &'static str, arguments: &[String], variables: &[(&str, &str)]) -> io::Result<Running> {
        let log = self.folder.join(format!("{name}.log"));
        let mut command = Command::new(self.programs.path(name));
        command.args(arguments).envs(variables.iter().copied());
        Ok(Running { name, keeper: Keeper::run(&command, &log)?, log })
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// Looks again and again, as long as all programs run.
async fn wait_for(
    what: &'static str,
    running: &mut [Running],
    mut ready: impl AsyncFnMut() -> bool,
) -> Result<(), Problem> {
    let started = Instant::now();
    while !ready().await {
        for program in &mut *running {
            if let Some(status) = program.keeper.ended()? {
                return Err(Problem::Ended { program: program.name, status, said: program.said_last() });
            }
        }
        if started.elapsed() > PATIENCE {
            let said = running.iter().fold(String::new(), |mut text, program| {
                let _ = writeln!(text, "{}:\n{}", program.name, program.said_last());
                text
            });
            return Err(Problem::NotReady { what, said });
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

impl Running {
    fn said_last(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// Whether there is an answer, and a good one.
async fn probe(url: &str, ca_pem: &str, path: &str, token: &str) -> bool {
    let Ok(mut client) = Client::connect(url, ca_pem).await else { return false };
    let request = hyper::Request::get(path).header(hyper::header::AUTHORIZATION, format!("Bearer {token}"));
    client.send(request, "").await.is_ok_and(|response| response.status().is_success())
}

/// Ports that nobody listens on. Held all together before any is given back, so that no two are the same.
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

/// A problem with its cause, for a person.
pub fn explain(problem: &Problem) -> String {
    match std::error::Error::source(problem) {
        Some(cause) => format!("{problem}: {cause}"),
        None => problem.to_string(),
    }
}
