"""The role of the elastic-ci-stack pod definition: what CloudFormation makes of its template, and what moto makes of that.

moto makes the role with its trust and its own policy. It attaches no managed policies, makes no association of EKS Pod Identity,
a type that it leaves out, and judges no rule and no AllowedPattern: those are read from the template here. That the role's
permissions suffice, only AWS can show.
"""

import json
import re

import pytest

from account import ACCOUNT_ID
from conftest import ROOT, run
from template import PSEUDO_PARAMETERS, Stack, grants, source

TEMPLATE = ROOT / "pod-definitions" / "elastic-ci-stack" / "iam" / "template.yml"
OVERLAYS = ROOT / "pod-definitions" / "overlays"

CLUSTER = {"KubernetesClusterIdentifier": "example-cluster"}
ISSUER = "oidc.eks.us-east-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE"
IRSA = {"Binding": "irsa", "KubernetesOidcProviderArn": f"arn:aws:iam::111122223333:oidc-provider/{ISSUER}"}
TOKEN = {"BuildkiteAgentTokenParameterStorePath": "/buildkite/agent-token"}
KEY = {"BuildkiteAgentTokenParameterStoreKMSKey": "1234abcd-12ab-34cd-56ef-1234567890ab"}
BUCKETS = {"SecretsBucket": "example-secrets", "ArtifactsBucket": "example-artifacts"}
COPY = {"KubernetesNamespace": "agents", "KubernetesServiceAccount": "elastic-ci-stack-deploy"}
CHINA = {"AWS::Partition": "aws-cn", "AWS::Region": "cn-north-1"}


class RoleStack(Stack):
    """A stack of the role's template."""

    required = CLUSTER

    @staticmethod
    def read():
        return source(TEMPLATE)


def trust(role):
    """Who may take the role, by which actions and on which conditions; for IRSA the template writes it as text."""
    document = role["AssumeRolePolicyDocument"]
    [statement] = (json.loads(document) if isinstance(document, str) else document)["Statement"]
    return statement["Principal"], statement["Action"], statement["Condition"]["StringEquals"]


def by_pod_identity(namespace="buildkite", account="elastic-ci-stack", partition="aws", region="us-east-1"):
    conditions = {
        "aws:SourceAccount": "111122223333",
        "aws:RequestTag/eks-cluster-arn": f"arn:{partition}:eks:{region}:111122223333:cluster/example-cluster",
        "aws:RequestTag/kubernetes-namespace": namespace,
        "aws:RequestTag/kubernetes-service-account": account,
    }
    return {"Service": "pods.eks.amazonaws.com"}, ["sts:AssumeRole", "sts:TagSession"], conditions


def by_irsa(namespace="buildkite", account="elastic-ci-stack"):
    subject = f"system:serviceaccount:{namespace}:{account}"
    conditions = {f"{ISSUER}:sub": subject, f"{ISSUER}:aud": "sts.amazonaws.com"}
    return {"Federated": IRSA["KubernetesOidcProviderArn"]}, "sts:AssumeRoleWithWebIdentity", conditions


def bucket(name, *of_objects):
    arn = f"arn:aws:s3:::{name}"
    return {f"{action} {arn}" for action in ("s3:GetBucketLocation", "s3:ListBucket")} | {
        f"{action} {arn}/*" for action in of_objects
    }


SECRETS = bucket("example-secrets", "s3:GetObject", "s3:GetObjectVersion")
OBJECT = ["Object", "ObjectAcl", "ObjectVersionAcl"]
ARTIFACTS = bucket(
    "example-artifacts", "s3:GetObjectVersion", *(f"s3:{verb}{what}" for verb in ("Get", "Put") for what in OBJECT)
)
PARAMETER = "arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token"
READ_TOKEN = {f"ssm:GetParameter {PARAMETER}"}
OF_PARAMETER = {"kms:EncryptionContext:PARAMETER_ARN": PARAMETER}
KEY_ARN = f"arn:aws:kms:us-east-1:111122223333:key/{KEY['BuildkiteAgentTokenParameterStoreKMSKey']}"
DECRYPT_TOKEN = {f"kms:Decrypt {KEY_ARN} {OF_PARAMETER}"}
READ_ONLY, DEPLOY = "arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::111122223333:policy/team/deploy"


def registry(level):
    return f"arn:aws:iam::aws:policy/AmazonEC2ContainerRegistry{level}"


# Parameters, and what the role then has: trust, grants, managed policies.
COPIED = {"namespace": "agents", "account": "elastic-ci-stack-deploy"}
CASES = {
    "nothing": ({}, by_pod_identity(), set(), []),
    "another-service-account": (COPY, by_pod_identity(**COPIED), set(), []),
    "irsa": (IRSA, by_irsa(), set(), []),
    "irsa-for-another-service-account": (IRSA | COPY, by_irsa(**COPIED), set(), []),
    "secrets": ({"SecretsBucket": "example-secrets"}, by_pod_identity(), SECRETS, []),
    "artifacts": ({"ArtifactsBucket": "example-artifacts"}, by_pod_identity(), ARTIFACTS, []),
    "token": (TOKEN, by_pod_identity(), READ_TOKEN, []),
    "token-of-a-key": (TOKEN | KEY, by_pod_identity(), READ_TOKEN | DECRYPT_TOKEN, []),
    "key-without-a-token": (KEY, by_pod_identity(), set(), []),
    "ecr-readonly": ({"ECRAccessPolicy": "readonly"}, by_pod_identity(), set(), [registry("ReadOnly")]),
    "ecr-poweruser": ({"ECRAccessPolicy": "poweruser"}, by_pod_identity(), set(), [registry("PowerUser")]),
    "ecr-full": ({"ECRAccessPolicy": "full"}, by_pod_identity(), set(), [registry("FullAccess")]),
    "managed-policies": ({"ManagedPolicyARN": f"{READ_ONLY},{DEPLOY}"}, by_pod_identity(), set(), [READ_ONLY, DEPLOY]),
    "everything": (
        IRSA | BUCKETS | TOKEN | KEY | {"ECRAccessPolicy": "full", "ManagedPolicyARN": READ_ONLY},
        by_irsa(),
        SECRETS | ARTIFACTS | READ_TOKEN | DECRYPT_TOKEN,
        [registry("FullAccess"), READ_ONLY],
    ),
}


def test_the_linter_finds_nothing():
    assert run("cfn-lint", TEMPLATE) == ""


@pytest.mark.parametrize("case", CASES)
def test_cloudformation_makes_this_role(case):
    parameters, trusted, granted, managed = CASES[case]
    stack = RoleStack(**parameters)
    role = stack.properties("Role")
    assert (trust(role), grants(role), role.get("ManagedPolicyArns", [])) == (trusted, granted, managed)
    assert ("Policies" in role) == bool(granted), "IAM refuses a policy without statements"
    binds_here = parameters.get("Binding") != "irsa"
    assert set(stack.resources) == ({"Role", "PodIdentityAssociation"} if binds_here else {"Role"})


@pytest.mark.parametrize("case", ["nothing", "everything"])
def test_a_deploy_makes_this_role(account, case):
    parameters, trusted, granted, _ = CASES[case]
    iam, stack = account.client("iam"), f"role-{case}"
    outputs = account.deploy(TEMPLATE, stack, **CLUSTER, **parameters)
    try:
        name = outputs["RoleArn"].removeprefix(f"arn:aws:iam::{ACCOUNT_ID}:role/")
        own = iam.list_role_policies(RoleName=name)["PolicyNames"]
        policies = [iam.get_role_policy(RoleName=name, PolicyName=policy) for policy in own]
        assert trust(iam.get_role(RoleName=name)["Role"]) == trusted
        assert grants({"Policies": policies}) == granted
    finally:
        account.delete_stack(stack)
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.get_role(RoleName=name)


def test_the_association_is_that_of_the_trust():
    stack = RoleStack(**COPY)
    association = stack.properties("PodIdentityAssociation")
    _, _, conditions = trust(stack.properties("Role"))
    for key, tag in {"Namespace": "kubernetes-namespace", "ServiceAccount": "kubernetes-service-account"}.items():
        assert association[key] == conditions[f"aws:RequestTag/{tag}"]
    assert (association["ClusterName"], association["RoleArn"]) == ("example-cluster", "<Role.Arn>")


def test_another_partition_is_named_throughout():
    stack = RoleStack(CHINA, **BUCKETS, **TOKEN, **KEY, ECRAccessPolicy="readonly")
    assert trust(stack.properties("Role")) == by_pod_identity(partition="aws-cn", region="cn-north-1")
    assert not re.search("arn:aws:|us-east-1", json.dumps(stack.resources))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, []),
        (IRSA, []),
        (TOKEN | KEY, []),
        ({"Binding": "irsa"}, ["Binding=irsa needs KubernetesOidcProviderArn"]),
        (KEY, ["BuildkiteAgentTokenParameterStoreKMSKey needs BuildkiteAgentTokenParameterStorePath"]),
    ],
)
def test_half_a_setting_is_refused(parameters, said):
    assert RoleStack(**parameters).broken_rules() == said


def test_every_parameter_is_described_and_what_is_typed_is_checked():
    for name, parameter in source(TEMPLATE)["Parameters"].items():
        assert parameter["Description"], name
        assert "AllowedValues" in parameter or {"AllowedPattern", "ConstraintDescription"} <= set(parameter), name


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        (
            "KubernetesOidcProviderArn",
            ["", IRSA["KubernetesOidcProviderArn"], f"arn:aws-cn:iam::111122223333:oidc-provider/{ISSUER}"],
            [ISSUER, f"https://{ISSUER}", "arn:aws:iam::111122223333:role/a"],
        ),
        ("SecretsBucket", ["", "example-secrets", "a.b"], ["arn:aws:s3:::example-secrets", "s3://example", "Example"]),
        ("ArtifactsBucket", ["", "example-artifacts"], ["example-artifacts/folder"]),
        ("KubernetesServiceAccount", ["elastic-ci-stack", "a.b"], ["", "Elastic", "a/b", "*"]),
        ("KubernetesNamespace", ["buildkite"], ["", "a.b", "*"]),
        ("KubernetesClusterIdentifier", ["example-cluster"], ["", "arn:aws:eks:us-east-1:111122223333:cluster/a", "*"]),
        ("BuildkiteAgentTokenParameterStorePath", ["", "/buildkite/agent-token"], ["token", "/a*"]),
        (
            "BuildkiteAgentTokenParameterStoreKMSKey",
            ["", "1234abcd-12ab-34cd-56ef-1234567890ab"],
            ["alias/a", "arn:aws:kms:us-east-1:111122223333:key/a", "*"],
        ),
        (
            "ManagedPolicyARN",
            ["", "arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws-cn:iam::111122223333:policy/team/deploy"],
            ["ReadOnlyAccess", "arn:aws:iam::111122223333:role/a"],
        ),
    ],
)
def test_the_pattern_takes_what_it_should(name, taken, refused):
    pattern = source(TEMPLATE)["Parameters"][name]["AllowedPattern"]
    assert [value for value in taken if not re.search(pattern, value)] == []
    assert [value for value in refused if re.search(pattern, value)] == []


def test_the_outputs_are_what_to_do_next():
    outputs = RoleStack(**COPY).outputs
    assert outputs == {
        "RoleArn": "<Role.Arn>",
        "UpdateKubeconfigCommand": "aws eks update-kubeconfig --region us-east-1 --name example-cluster",
        "ApplyCommand": "kubectl apply -k pod-definitions/overlays/elastic-ci-stack-deploy --namespace agents",
        "CheckCommand": (
            "kubectl get serviceaccount/elastic-ci-stack-deploy podtemplate/elastic-ci-stack-deploy --namespace agents"
        ),
    }
    # The command's folder is there for the copy of the example.
    assert (OVERLAYS / COPY["KubernetesServiceAccount"] / "kustomization.yaml").is_file()
    annotation = RoleStack(**IRSA).outputs["ServiceAccountAnnotation"]
    assert annotation == "eks.amazonaws.com/role-arn: <Role.Arn>"
    assert annotation.split(":")[0] in (OVERLAYS / "elastic-ci-stack-release" / "kustomization.yaml").read_text()


def test_nobodys_account_or_region_is_in_it():
    text = TEMPLATE.read_text()
    assert "arn:aws:" not in text.split("Rules:")[1]
    assert PSEUDO_PARAMETERS["AWS::AccountId"] not in text
