use hyper::{Request, http::request::Builder};

use super::*;
use crate::{Fault, Lab, When, client::Client};

async fn client(lab: &Lab) -> Client {
    Client::connect(&lab.aws.https_url(), &lab.certificates.ca_pem()).await.unwrap()
}

fn signed(lab: &Lab, request: Builder) -> Builder {
    let scope = "20260115/us-east-1/ssm/aws4_request, SignedHeaders=host, Signature=0";
    let key = &lab.credentials().access_key_id;
    request.header(AUTHORIZATION, format!("AWS4-HMAC-SHA256 Credential={key}/{scope}"))
}

fn get_parameter(lab: &Lab) -> Builder {
    signed(lab, Request::post("/").header(TARGET, "AmazonSSM.GetParameter"))
}

#[tokio::test]
async fn a_secure_string_is_shown_only_with_decryption() {
    let lab = Lab::start().await;
    let mut client = client(&lab).await;
    let (_, answer) = client.ask(get_parameter(&lab), r#"{"Name":"/buildkite/agent-token"}"#).await;
    assert_eq!(answer["Parameter"]["Type"], "SecureString");
    assert!(answer["Parameter"]["Value"].as_str().unwrap().starts_with("kms:"));

    let decrypted = r#"{"Name":"/buildkite/agent-token","WithDecryption":true}"#;
    let (_, answer) = client.ask(get_parameter(&lab), decrypted).await;
    assert_eq!(answer["Parameter"]["Value"], lab.agent_token());
    assert_eq!(answer["Parameter"]["ARN"], "arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token");
    assert!(!format!("{:?}", lab.timeline).contains(lab.agent_token()));
}

#[tokio::test]
async fn a_parameter_that_is_put_again_has_a_new_version() {
    let lab = Lab::start().await;
    let mut client = client(&lab).await;
    for version in 1..=2 {
        lab.aws.put_parameter("plain", Parameter::string(format!("value {version}")));
        let (_, answer) = client.ask(get_parameter(&lab), r#"{"Name":"plain"}"#).await;
        assert_eq!(answer["Parameter"]["Version"], version);
        assert_eq!(answer["Parameter"]["Value"], format!("value {version}"));
    }
    lab.aws.remove_parameter("plain");
    let answer = client.ask(get_parameter(&lab), r#"{"Name":"plain"}"#).await;
    assert_eq!(answer, (400, json!({"__type": "ParameterNotFound"})));
}

#[tokio::test]
async fn a_cluster_leads_to_the_api_server() {
    let lab = Lab::start().await;
    let mut client = client(&lab).await;
    let (_, answer) = client.ask(signed(&lab, Request::get("/clusters/example-cluster")), "").await;
    assert_eq!(answer["cluster"]["endpoint"], lab.kubernetes.url());
    assert_eq!(answer["cluster"]["certificateAuthority"]["data"], lab.kubernetes.ca_data());

    let unknown = client.send(signed(&lab, Request::get("/clusters/other")), "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(unknown.headers()["x-amzn-errortype"], "ResourceNotFoundException");
    assert_eq!(unknown.body(), r#"{"message":"No cluster found for name: other."}"#);
}

#[tokio::test]
async fn a_foreign_key_is_refused() {
    let lab = Lab::start().await;
    let mut client = client(&lab).await;
    let foreign = Request::post("/").header(TARGET, "AmazonSSM.GetParameter");
    let foreign = foreign.header(AUTHORIZATION, "AWS4-HMAC-SHA256 Credential=AKIAOTHER/20260115/us-east-1/ssm");
    let (status, answer) = client.ask(foreign, r#"{"Name":"/buildkite/agent-token"}"#).await;
    assert_eq!((status, &answer["__type"]), (403, &json!("UnrecognizedClientException")));
}

#[tokio::test]
async fn each_service_denies_in_its_own_form() {
    let lab = Lab::start().await;
    let mut client = client(&lab).await;
    lab.aws.inject(When::any(), Fault::access_denied(), 2);
    let (status, answer) = client.ask(get_parameter(&lab), r#"{"Name":"/buildkite/agent-token"}"#).await;
    assert_eq!((status, &answer["__type"]), (400, &json!("AccessDeniedException")));
    assert_eq!(
        answer["Message"],
        "User: arn:aws:sts::111122223333:assumed-role/agent-scheduler/agent-scheduler is not authorized to perform: \
         ssm:GetParameter on resource: arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token because no \
         identity-based policy allows the ssm:GetParameter action"
    );

    let eks = client.send(signed(&lab, Request::get("/clusters/example-cluster")), "").await;
    assert_eq!(
        (eks.status(), &eks.headers()["x-amzn-errortype"]),
        (StatusCode::FORBIDDEN, &"AccessDeniedException".parse().unwrap())
    );

    lab.aws.inject(When::action("GetParameter"), Fault::throttling(), 1);
    let answer = client.ask(get_parameter(&lab), r#"{"Name":"/buildkite/agent-token"}"#).await;
    assert_eq!(answer, (400, json!({"__type": "ThrottlingException", "message": "Rate exceeded"})));
}
