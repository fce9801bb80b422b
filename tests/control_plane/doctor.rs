//! The examination of the set-up on the real API server: what is wrong is found, and the fix that is printed is run.

use lab::{ControlPlane, buildkite::CLUSTER as BUILDKITE_CLUSTER};

use super::*;

const DOCTOR: &str = include_str!("../../events/doctor.json");
const SWEEP_ROLE: &str = "buildkite-on-demand-agent-scheduler-sweep";

/// A function in this lab, whose queue exists.
fn start(lab: &Lab, builder: Builder) -> Function {
    lab.buildkite.lock().queue(BUILDKITE_CLUSTER, "kubernetes");
    builder.start()
}

async fn examine(function: &Function) -> Value {
    function.succeed(DOCTOR).await
}

/// What a check found that is wrong.
fn wrong<'a>(answer: &'a Value, check: &str) -> &'a Value {
    let mut checks = answer["checks"].as_array().unwrap().iter();
    let found = checks.find(|found| found["check"] == check && found["ok"] == false);
    found.unwrap_or_else(|| panic!("{check} is not wrong: {answer:#}"))
}

/// The names of the checks that failed.
fn failed(answer: &Value) -> Vec<&str> {
    let checks = answer["checks"].as_array().unwrap().iter();
    let mut failed: Vec<_> =
        checks.filter(|found| found["ok"] == false).map(|found| found["check"].as_str().unwrap()).collect();
    failed.dedup();
    failed
}

/// Runs the fix, and waits until all is well: the authoriser reads a changed role with a delay.
async fn fix(control_plane: &ControlPlane, function: &Function, finding: &Value) {
    let script = finding["fix"].as_str().unwrap();
    assert!(script.contains("kubectl "), "{script}");
    control_plane.shell(script, env!("CARGO_MANIFEST_DIR")).await.unwrap();
    eventually("the fix has no effect", async || (examine(function).await["ok"] == true).then_some(())).await;
}

#[tokio::test]
async fn finds_nothing_wrong_with_the_set_up_of_the_readme() {
    let namespace = Namespace::new().await;
    let answer = examine(&start(&namespace.lab, namespace.builder())).await;
    assert_eq!(failed(&answer), [""; 0], "{answer:#}");
    let found = |check: &str| {
        let checks = answer["checks"].as_array().unwrap();
        checks.iter().find(|found| found["check"] == check).unwrap()["found"].as_str().unwrap()
    };
    assert!(found("cluster").contains("Kubernetes v1."), "{answer:#}");
    assert!(found("identity").contains(&format!("as user {SUBJECT} of groups {SUBJECT}, system:authenticated")));
    let audit = namespace.control_plane.audit(&namespace.name);
    let changes = audit.iter().filter(|entry| ["create", "patch"].contains(&entry["verb"].as_str().unwrap()));
    // The start of the function applies the Secret.
    let is_dry = |entry: &&Value| entry["requestURI"].as_str().unwrap().contains("dryRun=All");
    assert_eq!(changes.filter(|entry| !is_dry(entry)).count(), 1);
}

#[tokio::test]
async fn names_each_verb_that_is_cut_and_the_fix_gives_it_back() {
    let mut namespace = Namespace::new().await;
    let function = start(&namespace.lab, namespace.builder());
    let of_roles = [(SUBJECT, &PERMISSIONS[..]), (SWEEP_ROLE, &SWEEP_PERMISSIONS)];
    for (role, permissions) in of_roles {
        for (resource, verb) in permissions {
            namespace.remove_verb(role, resource, verb).await;
            let answer = examine(&function).await;
            let finding = wrong(&answer, "permissions");
            assert_eq!(finding["found"], format!("missing in namespace {}: {verb} {resource}", namespace.name));
            fix(namespace.control_plane, &function, finding).await;
        }
    }
}

#[tokio::test]
async fn finds_the_missing_role_for_job_tokens_and_the_secret_that_is_left_over() {
    let namespace = Namespace::new().await;
    // It applies the shared Secret.
    start(&namespace.lab, namespace.builder()).initialised().await.unwrap();
    let function = start(&namespace.lab, namespace.builder().env("JOB_TOKENS", "true"));
    let answer = examine(&function).await;
    let finding = wrong(&answer, "permissions");
    assert_eq!(finding["found"], format!("missing in namespace {}: create secrets", namespace.name));
    let script = finding["fix"].as_str().unwrap();
    namespace.control_plane.shell(script, env!("CARGO_MANIFEST_DIR")).await.unwrap();
    let answer = eventually("the fix has no effect", async || {
        let answer = examine(&function).await;
        (failed(&answer) == ["job tokens"]).then_some(answer)
    })
    .await;
    let finding = wrong(&answer, "job tokens");
    assert!(finding["found"].as_str().unwrap().contains("Secret buildkite-agent-token still has the agent token"));
    fix(namespace.control_plane, &function, finding).await;
}

#[tokio::test]
async fn makes_a_missing_namespace_with_its_permissions_and_the_name_of_the_secret() {
    let namespace = Namespace::without_permissions().await;
    let missing = format!("{}-new", namespace.name);
    let builder = namespace.builder().env("KUBERNETES_NAMESPACE", &missing).env("AGENT_TOKEN_SECRET_NAME", "own-token");
    let function = start(&namespace.lab, builder);
    let answer = examine(&function).await;
    let finding = wrong(&answer, "permissions");
    assert!(
        finding["found"]
            .as_str()
            .unwrap()
            .contains("create jobs, get jobs, list podtemplates, create secrets, patch secrets"),
        "{finding}"
    );
    fix(namespace.control_plane, &function, finding).await;
}

#[tokio::test]
async fn shows_a_quota_in_the_way_of_every_job() {
    let mut namespace = Namespace::new().await;
    namespace.forbid_jobs_by_quota().await;
    let function = start(&namespace.lab, namespace.builder());
    let answer = examine(&function).await;
    assert_eq!(failed(&answer), ["pod definitions"]);
    let finding = wrong(&answer, "pod definitions");
    assert!(finding["found"].as_str().unwrap().contains("exceeded quota: no-jobs"), "{finding}");
    // It only shows the quota.
    let script = finding["fix"].as_str().unwrap();
    namespace.control_plane.shell(script, env!("CARGO_MANIFEST_DIR")).await.unwrap();
    namespace.patch("resourcequotas/no-jobs", &json!({"spec": {"hard": {"count/jobs.batch": "9"}}})).await;
    eventually("the quota still counts", async || (examine(&function).await["ok"] == true).then_some(())).await;
}

#[tokio::test]
async fn says_which_definitions_a_restricted_namespace_admits() {
    let namespace = Namespace::enforcing("restricted").await;
    let answer = examine(&start(&namespace.lab, namespace.builder())).await;
    assert_eq!(failed(&answer), ["pod definitions"]);
    for finding in answer["checks"].as_array().unwrap().iter().filter(|found| found["check"] == "pod definitions") {
        let found = finding["found"].as_str().unwrap();
        let passes = found.starts_with("compiled definition restricted: ");
        assert_eq!(finding["ok"], passes, "{finding}");
        assert_eq!(found.contains("would violate PodSecurity \"restricted:"), !passes, "{finding}");
    }
}

#[tokio::test]
async fn knows_a_role_that_is_mapped_to_another_user() {
    let namespace = Namespace::new().await;
    let mut lab = Lab::start().await;
    lab.forward_to(Cluster::of_context(CLUSTER, Some(&namespace.control_plane.kubeconfig())).await.unwrap()).await;
    let answer = examine(&start(&lab, lab.function(FUNCTION).env("KUBERNETES_NAMESPACE", &namespace.name))).await;
    assert_eq!(failed(&answer), ["identity"], "{answer:#}");
    let finding = wrong(&answer, "identity");
    assert!(finding["found"].as_str().unwrap().starts_with("the API server knows the function as user admin of"));

    let other = namespace.builder().env("KUBERNETES_CLUSTER_IDENTIFIER", "another-cluster");
    let answer = examine(&start(&namespace.lab, other)).await;
    assert_eq!(failed(&answer), ["identity"], "{answer:#}");
    assert!(wrong(&answer, "identity")["found"].as_str().unwrap().contains("(401)"));
}

#[tokio::test]
async fn names_the_owner_of_a_secret_that_is_in_conflict_and_the_fix_removes_it() {
    let namespace = Namespace::new().await;
    namespace.create(&event()).await;
    namespace.put_token(OTHER_PARAMETER, "bkct_other");
    namespace
        .lab
        .buildkite
        .lock()
        .tokens
        .insert("bkct_other".to_owned(), (BUILDKITE_CLUSTER.to_owned(), lab::buildkite::Token::Cluster));
    let other = namespace.builder().env("BUILDKITE_AGENT_TOKEN_PARAMETER_PATH", OTHER_PARAMETER);
    let function = start(&namespace.lab, other);
    let answer = examine(&function).await;
    assert_eq!(failed(&answer), ["agent Secret"], "{answer:#}");
    let finding = wrong(&answer, "agent Secret");
    assert!(finding["found"].as_str().unwrap().contains("(conflict with \"agent-scheduler:"), "{finding}");
    fix(namespace.control_plane, &function, finding).await;
}

#[tokio::test]
async fn finds_a_service_account_that_is_missing_where_it_may_look_and_the_fix_makes_it() {
    let mut namespace = Namespace::new().await;
    let mut manifest = template("node", "agent:4");
    manifest["template"]["spec"]["serviceAccountName"] = json!("deploy");
    namespace.apply(&manifest).await;
    let function = start(&namespace.lab, namespace.builder());
    let answer = examine(&function).await;
    assert_eq!(failed(&answer), [""; 0], "{answer:#}");

    let read = "kubectl create role read --verb=get --resource=serviceaccounts --namespace NAMESPACE
                kubectl create rolebinding read --role=read --user=SUBJECT --namespace NAMESPACE";
    let read = read.replace("NAMESPACE", &namespace.name).replace("SUBJECT", SUBJECT);
    namespace.control_plane.shell(&read, env!("CARGO_MANIFEST_DIR")).await.unwrap();
    let answer = eventually("the role has no effect", async || {
        let answer = examine(&function).await;
        (answer["ok"] == false).then_some(answer)
    })
    .await;
    assert_eq!(failed(&answer), ["what definitions name"], "{answer:#}");
    fix(namespace.control_plane, &function, wrong(&answer, "what definitions name")).await;
}
