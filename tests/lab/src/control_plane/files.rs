//! The files of the programs: certificates, keys, tokens, and endpoints.

use std::{fmt::Write, fs, io, path::Path};

use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::{
    CLUSTER,
    aws::{ACCOUNT, ROLE},
    certificates::Certificates,
    credentials::random_hex,
    kubernetes::USER,
};

/// Who has a kubeconfig: its name, the user and the group.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("manager", "system:kube-controller-manager", "system:masters"),
    ("scheduler", "system:kube-scheduler", "system:masters"),
    ("node", "system:node:node", "system:nodes"),
];

/// Where to write, and the URLs of the API server and the authenticator.
pub(super) struct Endpoints<'a> {
    pub(super) folder: &'a Path,
    pub(super) certificates: &'a Certificates,
    pub(super) api_server: &'a str,
    pub(super) authenticator: &'a str,
}

/// Writes all files, and returns the token of the cluster's administrator.
pub(super) fn write(endpoints: &Endpoints) -> io::Result<String> {
    let Endpoints { folder, certificates, api_server, authenticator } = *endpoints;
    let write = |name: &str, text: &str| fs::write(folder.join(name), text);

    let (certificate, key) = certificates.server_pem();
    write("ca.pem", &certificates.ca_pem())?;
    write("server.pem", &certificate)?;
    write("server-key.pem", &key)?;
    let service_account = KeyPair::generate().expect("a key can be made");
    write("service-account-key.pem", &service_account.serialize_pem())?;
    write("service-account.pem", &service_account.public_key_pem())?;
    let tokens = USERS.map(|_| random_hex::<20>());
    let mut lines = String::new();
    for ((name, user, group), token) in USERS.iter().zip(&tokens) {
        let _ = writeln!(lines, "{token},{user},{name},{group}");
        write(&format!("{name}.kubeconfig"), &kubeconfig(api_server, certificates, &json!({"token": token})))?;
    }
    write("tokens.csv", &lines)?;
    write("audit-policy.yaml", &audit_policy().to_string())?;

    fs::create_dir(folder.join("authenticator"))?;
    write("authenticator/cert.pem", &certificate)?;
    write("authenticator/key.pem", &key)?;
    write("authenticator.yaml", &authenticator_config().to_string())?;
    let webhook = format!("{authenticator}/authenticate");
    write("authenticator.kubeconfig", &kubeconfig(&webhook, certificates, &json!({})))?;
    let [admin, ..] = tokens;
    Ok(admin)
}

/// JSON, which is YAML too.
fn kubeconfig(server: &str, certificates: &Certificates, user: &Value) -> String {
    let cluster = json!({"server": server, "certificate-authority-data": certificates.ca_data()});
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CLUSTER, "cluster": cluster}],
        "users": [{"name": CLUSTER, "user": user}],
        "contexts": [{"name": CLUSTER, "context": {"cluster": CLUSTER, "user": CLUSTER}}],
        "current-context": CLUSTER,
    })
    .to_string()
}

/// Bodies of requests about Jobs, and only metadata of the others: a body may be a Secret.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "RequestResponse", "resources": [{"group": "batch"}]},
            {"level": "Metadata", "userGroups": [USER]},
            {"level": "None"},
        ],
    })
}

/// Maps the function's role, as an access entry or aws-auth of an EKS cluster does.
fn authenticator_config() -> Value {
    json!({
        "clusterID": CLUSTER,
        "server": {
            "mapRoles": [{
                "roleARN": format!("arn:aws:iam::{ACCOUNT}:role/{ROLE}"),
                "username": USER,
                "groups": [USER],
            }],
        },
    })
}
