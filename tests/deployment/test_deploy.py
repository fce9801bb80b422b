"""`sam deploy` and `sam delete`, from a clone and from a package, on an account that is moto; then `connect`.

They show sam's side, and that the template holds together: every reference, condition and output of it is resolved, and
most resources are made. What moto does not prove, and only AWS can:

- IAM: moto lets everyone do everything, so nothing here shows that the role's permissions suffice.
- The failure queue's policy, the saved queries and the settings of asynchronous invocation, types that moto leaves out, and
  the access entry, which moto reports as made without making it: LEFT_OUT.
- The partner's bus, which the test makes itself, and that events, or messages of the failure queue, reach the function.
- AllowedPattern, MinValue and the like: moto takes any value for a parameter. Nor does it give the stack's tags to resources.
- The program: an empty file is in its place. test_build.py builds it.
"""

import base64
import hashlib
import os
import shutil

import pytest
import tomlkit
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from account import ACCOUNT_ID, EVENT_BUS
from conftest import ROOT, pack, run
from template import REQUIRED, Stack

STACK = "buildkite-agent-scheduler"
# What has no default, on this account.
NEEDED = [f"{name}={value}" for name, value in (REQUIRED | {"EventBridgeBusName": EVENT_BUS}).items()]
TAGS = [{"Key": "agent-scheduler:version", "Value": Stack().outputs["Version"]}]

LEFT_OUT = {
    "AWS::EKS::AccessEntry",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Logs::QueryDefinition",
    "AWS::SQS::QueuePolicy",
}

# What is typed when `sam deploy --guided` asks for a parameter; for any other, Enter.
TYPED = {
    "EventBridgeBusName": EVENT_BUS,
    "BuildkiteQueue": "linux,gpu",
    "BuildkiteAgentTags": "os=linux,team=web",
    "KubernetesClusterIdentifier": "example-cluster",
    "KubernetesNamespace": "agents",
}
DEFAULTS = {
    name: str(parameter.get("Default", ""))
    for name, parameter in yaml_parse((ROOT / "template.yml").read_text())["Parameters"].items()
}
QUESTIONS = {
    "Stack Name [buildkite-agent-scheduler]": "",
    "AWS Region [us-east-1]": "",
    **{f"Parameter {name} [{default}]": TYPED.get(name, "") for name, default in DEFAULTS.items()},
    "Confirm changes before deploy [Y/n]": "",
    "Allow SAM CLI IAM role creation [Y/n]": "",
    "Disable rollback [y/N]": "",
    "Save arguments to configuration file [Y/n]": "",
    "SAM configuration file [samconfig.local.toml]": "",
    "SAM configuration environment [default]": "",
    "Deploy this changeset? [y/N]": "y",
}


class Project:
    """A folder to deploy from, on an account."""

    def __init__(self, folder, account):
        self.folder = folder
        # sam asks every five seconds how a deploy goes on; moto is done at once.
        self.environment = os.environ | {"AWS_ENDPOINT_URL": account.endpoint, "SAM_CLI_POLL_DELAY": "0.1"}

    def run(self, *command, answers=(), **options):
        typed = "".join(f"{answer}\n" for answer in answers)
        return run(*command, cwd=self.folder, env=self.environment, input=typed, **options)


@pytest.fixture(scope="module")
def project(account, tmp_path_factory):
    """A clone as `sam build` leaves it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("template.yml", "samconfig.toml", "Makefile", "connect", "buildkite-role.yaml"):
        shutil.copy(ROOT / name, folder)
    built = folder / ".aws-sam" / "build"
    (built / "AgentScheduler").mkdir(parents=True)
    (built / "AgentScheduler" / "bootstrap").touch(mode=0o755)
    template = (ROOT / "template.yml").read_text()
    (built / "template.yaml").write_text(template.replace("CodeUri: .\n", "CodeUri: AgentScheduler\n"))
    return Project(folder, account)


@pytest.fixture(scope="module")
def package(account, tmp_path_factory):
    """What `make package` writes."""
    return Project(pack(tmp_path_factory.mktemp("package")), account)


@pytest.fixture(scope="module")
def guided(project):
    """What `make deploy-guided` printed when it made the stack that the tests below are about; it is built already."""
    return project.run("make", "--assume-old=build", "deploy-guided", answers=QUESTIONS.values())


def contents(account):
    """All that the account holds of what our stack is made of."""
    functions = account.client("lambda")
    return {
        "AWS::Lambda::Function": functions.list_functions()["Functions"],
        "AWS::Lambda::EventSourceMapping": functions.list_event_source_mappings()["EventSourceMappings"],
        "AWS::IAM::Role": account.client("iam").list_roles()["Roles"],
        "AWS::Events::Rule": account.client("events").list_rules(EventBusName=EVENT_BUS)["Rules"],
        "AWS::SQS::Queue": account.client("sqs").list_queues().get("QueueUrls", []),
        "AWS::Logs::LogGroup": account.client("logs").describe_log_groups()["logGroups"],
        "AWS::CloudWatch::Dashboard": account.client("cloudwatch").list_dashboards()["DashboardEntries"],
        "AWS::CloudWatch::Alarm": account.client("cloudwatch").describe_alarms()["MetricAlarms"],
    }


def count(account):
    return {kind: len(things) for kind, things in contents(account).items()}


def physical_ids(account):
    """What moto made, by its name in the template."""
    resources = account.client("cloudformation").describe_stack_resources(StackName=STACK)["StackResources"]
    # Those that it left out have no name at all.
    named = [each for each in resources if "LogicalResourceId" in each]
    return {each["LogicalResourceId"]: each.get("PhysicalResourceId") for each in named}


def parameters(account):
    return {each["ParameterKey"]: each["ParameterValue"] for each in account.stack(STACK)["Parameters"]}


@pytest.mark.parametrize(
    "kind, options, architecture",
    [
        ("project", [], "x86_64"),
        ("package", ["--template-file", "template-x86_64.yml"], "x86_64"),
        ("package", ["--template-file", "template-arm64.yml"], "arm64"),
    ],
)
def test_one_line_deploys_with_three_values(request, account, kind, options, architecture):
    project = request.getfixturevalue(kind)
    project.run("sam", "deploy", *options, "--parameter-overrides", *NEEDED, answers=["y"])
    stack = account.stack(STACK)
    assert (stack["StackStatus"], stack["Tags"]) == ("CREATE_COMPLETE", TAGS)
    assert parameters(account) == DEFAULTS | dict(value.split("=", 1) for value in NEEDED)
    template = account.client("cloudformation").get_template(StackName=STACK)["TemplateBody"]
    assert template["Resources"]["AgentScheduler"]["Properties"]["Architectures"] == [architecture]
    if kind == "package":
        [function] = contents(account)["AWS::Lambda::Function"]
        packed = (project.folder / f"agent-scheduler-{architecture}.zip").read_bytes()
        assert function["CodeSha256"] == base64.b64encode(hashlib.sha256(packed).digest()).decode()
    project.run("sam", "delete", "--no-prompts")
    assert not any(contents(account).values())


def test_guided_asks_for_every_parameter_and_succeeds(guided):
    asked = guided.replace("\t", "")
    places = [asked.index(f"{question}: ") for question in QUESTIONS]
    assert places == sorted(places)
    assert asked.count("]: ") == len(QUESTIONS)
    assert f"Successfully created/updated stack - {STACK} in us-east-1" in guided


def test_the_answers_are_kept_in_a_file_of_their_own_beside_our_defaults(project, guided):
    assert (project.folder / "samconfig.toml").read_text() == (ROOT / "samconfig.toml").read_text()
    after = (project.folder / "samconfig.local.toml").read_text()
    assert set((ROOT / "samconfig.toml").read_text().splitlines()) - set(after.splitlines()) <= {
        line for line in (ROOT / "samconfig.toml").read_text().splitlines() if "tags" in line
    }
    deploy = tomlkit.parse(after)["default"]["deploy"]["parameters"]
    assert deploy["region"] == "us-east-1"
    answers = [f'{name}="{TYPED.get(name, default)}"' for name, default in DEFAULTS.items()]
    assert deploy["parameter_overrides"] == " ".join(answers)
    assert "samconfig.local.toml" in run("git", "check-ignore", "samconfig.local.toml")


def test_function_role_rule_queues_and_the_rest_exist(account, guided):
    assert account.stack(STACK)["StackStatus"] == "CREATE_COMPLETE"
    assert count(account) == {
        "AWS::Lambda::Function": 1,
        "AWS::Lambda::EventSourceMapping": 1,
        "AWS::IAM::Role": 1,
        "AWS::Events::Rule": 1,
        "AWS::SQS::Queue": 2,
        "AWS::Logs::LogGroup": 1,
        "AWS::CloudWatch::Dashboard": 1,
        "AWS::CloudWatch::Alarm": 13,
    }
    made = physical_ids(account)
    template = account.client("cloudformation").get_template(StackName=STACK)["TemplateBody"]
    assert {resource["Type"] for name, resource in template["Resources"].items() if name not in made} == LEFT_OUT


def test_the_answers_reach_the_function(account, guided):
    [function] = contents(account)["AWS::Lambda::Function"]
    variables = function["Environment"]["Variables"]
    assert variables["BUILDKITE_QUEUE"] == "linux,gpu"
    assert variables["BUILDKITE_AGENT_TAGS"] == "os=linux,team=web"
    assert variables["KUBERNETES_CLUSTER_IDENTIFIER"] == "example-cluster"
    assert variables["KUBERNETES_NAMESPACE"] == "agents"


def test_the_outputs_are_names_that_exist_and_commands_to_paste(account, guided):
    outputs = account.outputs(STACK)
    there = contents(account)
    [function], [rule] = there["AWS::Lambda::Function"], there["AWS::Events::Rule"]
    [role], [log_group] = there["AWS::IAM::Role"], there["AWS::Logs::LogGroup"]
    [dashboard] = there["AWS::CloudWatch::Dashboard"]
    cluster = "--region us-east-1 --name example-cluster"
    user = "buildkite-on-demand-agent-scheduler"
    assert outputs == {
        "Version": TAGS[0]["Value"],
        "FunctionName": function["FunctionName"],
        "FunctionArn": f"arn:aws:lambda:us-east-1:{ACCOUNT_ID}:function:{function['FunctionName']}",
        "RoleArn": role["Arn"],
        "RuleName": rule["Name"],
        "FailureQueueUrl": physical_ids(account)["FailureQueue"],
        "ParkingQueueUrl": physical_ids(account)["ParkingQueue"],
        "ParkingQueueArn": f"arn:aws:sqs:us-east-1:{ACCOUNT_ID}:{physical_ids(account)['ParkingQueue'].split('/')[-1]}",
        "LogGroupName": log_group["logGroupName"],
        "DashboardUrl": "https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1"
        f"#dashboards/dashboard/{dashboard['DashboardName']}",
        "AuthenticationModeCommand": f"aws eks describe-cluster {cluster} "
        "--query cluster.accessConfig.authenticationMode --output text",
        "CreateAccessEntryCommand": "aws eks create-access-entry --region us-east-1 --cluster-name example-cluster "
        f"--principal-arn {role['Arn']} --username {user} --kubernetes-groups {user}",
        "CreateIdentityMappingCommand": "eksctl create iamidentitymapping --region us-east-1 --cluster example-cluster "
        f"--arn {role['Arn']} --username {user} --group {user}",
        "UpdateKubeconfigCommand": f"aws eks update-kubeconfig {cluster}",
        "CreateNamespaceCommand": "kubectl create namespace agents",
        "GrantPermissionsCommand": "kubectl apply -f buildkite-role.yaml --namespace agents "
        "--selector agent-scheduler.buildkite.com/job-tokens!=true",
    }
    assert rule["Name"] == "linux-Queue"


def test_connect_reads_the_stack(project, account, guided, tmp_path):
    """With the real AWS CLI, if there is one; kubectl and eksctl only say that there is nothing."""
    if not shutil.which("aws"):
        pytest.skip("NO AWS CLI, SO `connect` IS TESTED WITH A STAND-IN ALONE")
    account.client("eks").create_cluster(
        name="example-cluster", roleArn="arn:aws:iam::111122223333:role/r", resourcesVpcConfig={}
    )
    for tool in ("kubectl", "eksctl"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    project.environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    said = project.run("make", "connect", f"STACK={STACK}", "OPTIONS=--dry-run")
    assert f"map the role {account.outputs(STACK)['RoleArn']}" in said
    assert "create the namespace agents" in said
    assert "does not exist" in project.run("./connect", "another-stack", expect=1)


def test_a_second_deploy_changes_nothing_and_succeeds(account, project, guided):
    before = contents(account)
    said = project.run("make", "--assume-old=build", "deploy")
    assert f"No changes to deploy. Stack {STACK} is up to date" in said
    assert contents(account) == before


def test_one_parameter_can_be_changed_and_the_others_stay(account, project, guided):
    """As CONTRIBUTING and the Makefile have it."""
    before = parameters(account)
    change = "OPTIONS=--parameter-overrides JobTtlSeconds=900"
    project.run("make", "--assume-old=build", "deploy", change, answers=["y"])
    assert parameters(account) == before | {"JobTtlSeconds": "900"}
    assert account.stack(STACK)["Tags"] == TAGS


def test_delete_removes_all_that_the_stack_made(account, project, guided):
    """The last about the stack."""
    project.run("sam", "delete", answers=["y", "y"])
    with pytest.raises(ClientError, match="does not exist"):
        account.stack(STACK)
    assert not any(contents(account).values())


def test_a_stack_with_every_switch_on_is_made_and_deleted(account, project):
    ec2 = account.client("ec2")
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]]
    [group] = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
    topic = account.client("sns").create_topic(Name="alarms")["TopicArn"]
    key = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    switches = {
        "ServeJobsWithoutQueue": "true",
        "BuildkiteAgentTokenParameterPath": "/aws/reference/secretsmanager/buildkite/agent-token",
        "AgentTokenKmsKeyArn": key,
        "KubernetesApiServerEndpoint": "https://example.gr7.us-east-1.eks.amazonaws.com",
        "KubernetesCertificateAuthorityData": "LS0tLS1CRUdJTg==",
        "CreateAccessEntry": "true",
        "VpcSubnets": ",".join(subnets),
        "VpcSecurityGroupIds": group["GroupId"],
        "ReservedConcurrency": "20",
        "AlarmTopicArn": topic,
    }
    overrides = NEEDED + [f"{name}={value}" for name, value in switches.items()]
    project.run(
        "sam", "deploy", "--no-confirm-changeset", "--stack-name", "every-switch", "--parameter-overrides", *overrides
    )

    functions = account.client("lambda")
    function = functions.get_function(FunctionName=account.outputs("every-switch")["FunctionName"])
    assert function["Concurrency"]["ReservedConcurrentExecutions"] == 20
    assert function["Configuration"]["VpcConfig"]["SubnetIds"] == subnets
    assert function["Configuration"]["VpcConfig"]["SecurityGroupIds"] == [group["GroupId"]]
    [mapping] = functions.list_event_source_mappings()["EventSourceMappings"]
    assert mapping["State"] == "Enabled"
    # The stack has mapped the role itself.
    assert not account.outputs("every-switch").keys() & {"CreateAccessEntryCommand", "CreateIdentityMappingCommand"}

    project.run("sam", "delete", "--no-prompts", "--stack-name", "every-switch")
    assert not any(contents(account).values())
