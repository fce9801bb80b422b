//! The files of the programs: certificates, keys, tokens, and endpoints.

use std::{fs, io, path::Path};

use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::{
    CLUSTER,
    aws::{ACCOUNT, ROLE},
    certificates::Certificates,
    credentials::random_hex,
    kubernetes::USER,
};

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
    let (admin, manager) = (random_hex::<20>(), random_hex::<20>());

    let (certificate, key) = certificates.server_pem();
    write("ca.pem", &certificates.ca_pem())?;
    write("server.pem", &certificate)?;
    write("server-key.pem", &key)?;
    let service_account = KeyPair::generate().expect("a key can be made");
    write("service-account-key.pem", &service_account.serialize_pem())?;
    write("service-account.pem", &service_account.public_key_pem())?;
    write(
        "tokens.csv",
        &format!(
            "{admin},admin,admin,system:masters\n{manager},system:kube-controller-manager,manager,system:masters\n"
        ),
    )?;
    write("admin.kubeconfig", &kubeconfig(api_server, certificates, &json!({"token": admin})))?;
    write("manager.kubeconfig", &kubeconfig(api_server, certificates, &json!({"token": manager})))?;
    write("audit-policy.yaml", &audit_policy().to_string())?;

    fs::create_dir(folder.join("authenticator"))?;
    write("authenticator/cert.pem", &certificate)?;
    write("authenticator/key.pem", &key)?;
    write("authenticator.yaml", &authenticator_config().to_string())?;
    let webhook = format!("{authenticator}/authenticate");
    write("authenticator.kubeconfig", &kubeconfig(&webhook, certificates, &json!({})))?;
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
