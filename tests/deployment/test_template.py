"""template.yml: what SAM and CloudFormation make of it, and what breaks if a part of it is lost."""

import json
import os
import re
import subprocess

import pytest
import yaml

from conftest import ROOT, TARGET, run
from template import REQUIRED, Stack, expanded, grants, source

ENDPOINT = {
    "KubernetesApiServerEndpoint": "https://0123.gr7.us-east-1.eks.amazonaws.com",
    "KubernetesCertificateAuthorityData": "LS0tLS1CRUdJTg==",
}
VPC = {"VpcSubnets": "subnet-1,subnet-2", "VpcSecurityGroupIds": "sg-1"}
KEY = "arn:aws:kms:us-east-1:111122223333:key/0123"
TOPIC = "arn:aws:sns:us-east-1:111122223333:alarms"
PARAMETER = "arn:aws:ssm:us-east-1:111122223333:parameter"
SHARED = "arn:aws:ssm:us-east-1:444455556666:parameter"
IN_MANAGER = "arn:aws:secretsmanager:us-east-1:111122223333:secret"

# What the role may do with the defaults, and no more.
GRANTS = {
    "logs:CreateLogStream <LogGroup.Arn>",
    "logs:PutLogEvents <LogGroup.Arn>",
    f"ssm:GetParameter {PARAMETER}/buildkite/agent-token",
    "eks:DescribeCluster arn:aws:eks:us-east-1:111122223333:cluster/example-cluster",
    "sqs:SendMessage <FailureQueue.Arn>",
    "sqs:ReceiveMessage <FailureQueue.Arn>",
    "sqs:DeleteMessage <FailureQueue.Arn>",
    "sqs:GetQueueAttributes <FailureQueue.Arn>",
}


def token(path):
    return {"BuildkiteAgentTokenParameterPath": path}


def flat(node, path=()):
    """Every value of a tree by its path; a list is one value."""
    if not isinstance(node, dict):
        return {".".join(path): node}
    return {key: value for name in node for key, value in flat(node[name], (*path, name)).items()}


def changes(**parameters):
    """What parameters change beside the role: the new value of each property, None for one that is gone."""
    before, after = flat(Stack().resources), flat(Stack(**parameters).resources)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    return {
        path.replace(".Properties", "").replace("Environment.Variables.", ""): after.get(path)
        for path in changed
        if not path.startswith("Role.")
    }


ALARMS = [name for name, resource in Stack().resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"]
_, BINDING, _, OF_SWEEP, *OF_TOKENS = yaml.safe_load_all((ROOT / "buildkite-role.yaml").read_text())
SUBJECTS = {subject["kind"]: subject["name"] for subject in BINDING["subjects"]}
assert all(binding["subjects"] == BINDING["subjects"] for binding in [OF_SWEEP, *OF_TOKENS[1::2]])
ACCESS_ENTRY = {
    "Type": "AWS::EKS::AccessEntry",
    "ClusterName": "example-cluster",
    "PrincipalArn": "<Role.Arn>",
    "Username": SUBJECTS["User"],
    "KubernetesGroups": [SUBJECTS["Group"]],
}


def vpc_config(subnets, groups):
    network = "AgentScheduler.VpcConfig"
    return {f"{network}.SubnetIds": subnets, f"{network}.SecurityGroupIds": groups}


RULE = "AgentSchedulerJobScheduled.EventPattern.detail.job"
NO_SWEEP = {"AgentSchedulerSweep.State": "DISABLED", "MissingSweepsAlarm.TreatMissingData": "notBreaching"}
SWITCHES = {
    "nothing": ({}, {}),
    "access entry": (
        {"CreateAccessEntry": "true"},
        {f"AccessEntry.{key}": value for key, value in ACCESS_ENTRY.items()},
    ),
    "no sweep": ({"SweepEnabled": "false"}, {"AgentScheduler.SWEEP_ENABLED": "false"} | NO_SWEEP),
    "job tokens": ({"JobTokens": "true"}, {"AgentScheduler.JOB_TOKENS": "true"}),
    "only lines on the build page": ({"SweepFinishes": "false"}, {"AgentScheduler.SWEEP_FINISHES": "false"}),
    "no Stacks API": ({"StacksApi": "false"}, {"AgentScheduler.STACKS_API": "false"} | NO_SWEEP),
    "patience": (
        {"PodPendingSeconds": "1800"},
        {"AgentScheduler.POD_PENDING_SECONDS": "1800", "WaitingJobsAlarm.Threshold": "1800"},
    ),
    "alarm topic": ({"AlarmTopicArn": TOPIC}, {f"{alarm}.AlarmActions": [TOPIC] for alarm in ALARMS}),
    "concurrency": ({"ReservedConcurrency": "5"}, {"AgentScheduler.ReservedConcurrentExecutions": "5"}),
    "network": (VPC, vpc_config(["subnet-1", "subnet-2"], ["sg-1"])),
    # Lambda's error names the half that is missing.
    "half a network": ({"VpcSubnets": "subnet-1"}, vpc_config(["subnet-1"], [""])),
    "jobs without queue": (
        {"ServeJobsWithoutQueue": "true"},
        {
            "AgentScheduler.SERVE_JOBS_WITHOUT_QUEUE": "true",
            f"{RULE}.agent_query_rules": None,
            f"{RULE}.uuid": [{"exists": True}],
        },
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_this_and_nothing_else(switch):
    parameters, changed = SWITCHES[switch]
    assert changes(**parameters) == changed


ENI = [f"ec2:{action}NetworkInterface" for action in ("Create", "Delete")] + [
    f"ec2:{action}PrivateIpAddresses" for action in ("Assign", "Unassign")
]
SECRET = "/aws/reference/secretsmanager/ci/agent-token"
# What a setting adds to them, and the action that it takes from them.
ROLES = [
    ({}, [], None),
    ({"AgentTokenKmsKeyArn": KEY}, [f"kms:Decrypt {KEY}"], None),
    (ENDPOINT, [], "eks:DescribeCluster"),
    ({"KubernetesApiServerEndpoint": ENDPOINT["KubernetesApiServerEndpoint"]}, [], None),
    (token("agent-token"), [f"ssm:GetParameter {PARAMETER}/agent-token"], "ssm:GetParameter"),
    # Another account's parameter, shared with this one.
    (token(f"{SHARED}/t"), [f"ssm:GetParameter {SHARED}/t"], "ssm:GetParameter"),
    (
        token(SECRET),
        [f"ssm:GetParameter {PARAMETER}{SECRET}", f"secretsmanager:GetSecretValue {IN_MANAGER}:ci/agent-token-??????"],
        "ssm:GetParameter",
    ),
    (
        VPC,
        ["ec2:DescribeNetworkInterfaces *", "ec2:DescribeSubnets *"]
        + [f"{action} arn:aws:ec2:us-east-1:{owned}" for action in ENI for owned in ("111122223333:*/*", "*:subnet/*")],
        None,
    ),
]


@pytest.mark.parametrize("parameters, added, dropped", ROLES)
def test_the_role_may_do_what_the_settings_need_and_no_more(parameters, added, dropped):
    left = {grant for grant in GRANTS if grant.split()[0] != dropped}
    role = Stack(**parameters).properties("Role")
    assert grants(role) == left | set(added)
    assert "ManagedPolicyArns" not in role


def test_only_lambda_takes_the_role_and_the_functions_own_code_gets_none_of_ec2():
    [trust] = Stack().properties("Role")["AssumeRolePolicyDocument"]["Statement"]
    assert (trust["Effect"], trust["Principal"]) == ("Allow", {"Service": "lambda.amazonaws.com"})
    [denied] = grants(Stack(**VPC).properties("Role"), effect="Deny")
    function = "arn:aws:lambda:us-east-1:111122223333:function:buildkite-agent-scheduler-*"
    assert denied == f"ec2:* * {{'lambda:SourceFunctionArn': '{function}'}}"


def test_partition_region_and_account_are_those_of_the_stack():
    china = Stack(pseudo={"AWS::Partition": "aws-cn", "AWS::Region": "cn-north-1"})
    assert not re.search(r":aws:|us-east-1", json.dumps([china.resources, china.outputs]))
    gov = Stack(pseudo={"AWS::Partition": "aws-us-gov", "AWS::Region": "us-gov-west-1"})
    consoles = [stack.outputs["DashboardUrl"].split("/")[2] for stack in (china, gov, Stack())]
    assert consoles == [
        "cn-north-1.console.amazonaws.cn",
        "us-gov-west-1.console.amazonaws-us-gov.com",
        "us-east-1.console.aws.amazon.com",
    ]
    assert not re.search(r"\b[0-9]{12}\b", (ROOT / "template.yml").read_text())


def test_an_event_that_fails_anywhere_is_in_the_failure_queue_which_may_take_it():
    stack = Stack()
    rule, function = stack.properties("AgentSchedulerJobScheduled"), stack.properties("AgentScheduler")
    [target] = rule["Targets"]
    [policy] = stack.properties("FailureQueuePolicy")["PolicyDocument"]["Statement"]
    failed = stack.properties("AgentSchedulerEventInvokeConfig")["DestinationConfig"]["OnFailure"]["Destination"]
    redrive = stack.properties("AgentSchedulerRedrive")
    queues = {target["DeadLetterConfig"]["Arn"], failed, policy["Resource"], redrive["EventSourceArn"]}
    assert queues == {"<FailureQueue.Arn>"}
    assert redrive.get("Enabled", True), "always on"
    assert redrive["ScalingConfig"] == {"MaximumConcurrency": 2}, "half of the least ReservedConcurrency"
    assert policy["Principal"] == {"Service": "events.amazonaws.com"}
    arn = f"arn:aws:events:us-east-1:111122223333:rule/{rule['EventBusName']}/{rule['Name']}"
    assert policy["Condition"] == {"ArnEquals": {"aws:SourceArn": arn}}
    assert function["LoggingConfig"]["LogGroup"] == "<LogGroup>", "the one that the role may write to"
    for name in ("FailureQueue", "ParkingQueue"):
        queue = stack.properties(name)
        assert queue["MessageRetentionPeriod"] == 14 * 24 * 60 * 60, "the maximum of SQS"
        assert queue["SqsManagedSseEnabled"]
    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    assert stack.properties("FailureQueue")["VisibilityTimeout"] >= 6 * function["Timeout"]


def test_the_sweep_runs_once_a_minute_on_the_default_bus_and_a_late_one_is_dropped():
    stack = Stack()
    rule = stack.properties("AgentSchedulerSweep")
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 minute)", "ENABLED")
    assert "EventBusName" not in rule
    [target] = rule["Targets"]
    assert target["Arn"] == "<AgentScheduler.Arn>"
    assert target["RetryPolicy"] == {"MaximumRetryAttempts": 0, "MaximumEventAgeInSeconds": 60}
    permission = stack.properties("AgentSchedulerSweepPermission")
    assert (permission["Principal"], permission["SourceArn"]) == ("events.amazonaws.com", "<AgentSchedulerSweep.Arn>")


def test_sam_and_cfn_lint_find_nothing():
    run("sam", "validate", "--lint")
    assert run("cfn-lint", "template.yml") == ""


def test_the_function_reads_every_variable_from_the_parameter_of_its_name():
    variables = source()["Resources"]["AgentScheduler"]["Properties"]["Environment"]["Variables"]
    # Of no parameter.
    assert list(variables.pop("STACK")) == ["Fn::Sub"]
    for variable, value in variables.items():
        assert value["Ref"].upper() == variable.replace("_", ""), variable
    # No setting takes a space, and the function reports all problems at once. That it starts with these, test_redrive shows.
    command = [TARGET / "debug" / "agent-scheduler"]
    environment = dict.fromkeys(variables, " ") | {"AWS_REGION": "us-east-1", "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9"}
    printed = subprocess.run(command, env=environment, text=True, capture_output=True, check=False).stdout
    assert [variable for variable in variables if f"({variable}) must be" not in printed] == []


def test_the_command_for_a_secret_of_another_name_grants_both(tmp_path):
    command = Stack(AgentTokenSecretName="gpu-token").outputs["GrantPermissionsCommand"]
    (tmp_path / "kubectl").write_text("#!/bin/sh\ncat\n")
    (tmp_path / "kubectl").chmod(0o755)
    applied = run("sh", "-c", command, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    rules = [rule for role in yaml.safe_load_all(applied) for rule in role.get("rules", [])]
    assert ["buildkite-agent-token", "gpu-token"] in [rule.get("resourceNames") for rule in rules]


@pytest.mark.parametrize("missing", ["StacksApi", "SweepEnabled"])
def test_job_tokens_are_refused_without_what_they_need(missing):
    [said] = Stack(JobTokens="true", **{missing: "false"}).broken_rules()
    assert said.startswith(f"JobTokens=true needs {missing}=true")
    assert Stack(JobTokens="true").broken_rules() == []


def test_the_command_for_job_tokens_selects_their_role():
    command = Stack(JobTokens="true", AgentTokenSecretName="gpu-token").outputs["GrantPermissionsCommand"]
    assert command.endswith(" --namespace buildkite --selector agent-scheduler.buildkite.com/job-tokens!=false")


def test_the_prompts_come_in_the_order_of_the_groups_with_what_is_required_first():
    template = expanded()
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert [name for group in groups for name in group["Parameters"]] == list(template["Parameters"])
    required = [name for name, parameter in template["Parameters"].items() if "Default" not in parameter]
    assert required == groups[0]["Parameters"] == list(REQUIRED)
    for name, parameter in template["Parameters"].items():
        assert parameter["Description"].endswith("."), name
        assert ("AllowedPattern" in parameter) == ("ConstraintDescription" in parameter), name


# A value that the template takes and one that it refuses before anything is deployed.
VALUES = {
    "EventBridgeBusName": (
        ["aws.partner/buildkite.com/acme/0123-4567"],
        ["arn:aws:events:us-east-1:1:event-bus/b", ""],
    ),
    "BuildkiteQueue": (["kubernetes", "linux,gpu", "a_b-C9"], ["", "linux, gpu", "a,,b", "queue=a", "a,", "a" * 59]),
    "BuildkiteAgentTokenParameterPath": (
        [
            "/buildkite/agent-token",
            "token",
            "arn:aws:ssm:us-east-1:111122223333:parameter/t",
            "/bk/ct_a",
            "/a/" + "0" * 39,
        ],
        # The last are tokens.
        ["", "buildkite/agent-token", "/a b", "arn:aws:s3:::bucket", "bkct_a1B2", "/buildkite/bkct_a1B2"]
        + [f"{kind}_a1B2" for kind in ("bkaa", "bkaj", "bkar", "bkat", "bkcqt", "bkjat", "bkpt", "bkua")]
        + ["0123456789abcdef0123456789abcdef01234567", "/token/0123456789ABCDEF0123456789ABCDEF01234567"],
    ),
    "AgentTokenKmsKeyArn": (["", KEY], ["alias/a", "0123"]),
    "BuildkiteAgentTags": (
        ["", "os=linux", "os=linux,flags=a=b"],
        ["linux", "=linux", "os=linux, team=web", "os=", "os =linux", "queue=a", "os=linux,queue=a"]
        + [f"os=linux,{key}=a" for key in ("pod-definition", "pod-template", "image", "cpu", "memory")],
    ),
    "KubernetesClusterIdentifier": (["example-cluster"], ["", "arn:aws:eks:us-east-1:1:cluster/c", "-a"]),
    "KubernetesNamespace": (["buildkite"], ["", "Buildkite", "a_b", "-a", "a-", "a" * 64]),
    "KubernetesApiServerEndpoint": (
        ["", ENDPOINT["KubernetesApiServerEndpoint"]],
        ["http://a", "a:6443", "https://a/b"],
    ),
    "KubernetesCertificateAuthorityData": (["", "LS0tLS1CRUdJTg=="], ["-----BEGIN CERTIFICATE-----"]),
    "AgentTokenSecretName": (["buildkite-agent-token", "a.b"], ["", "Token", "a_b", "a..b"]),
    "VpcSubnets": (["", "subnet-0a1b"], ["vpc-1", "subnet-"]),
    "VpcSecurityGroupIds": (["", "sg-0a1b"], ["subnet-1"]),
    "ReservedConcurrency": (["", "4", "10", "1000"], ["0", "3", "-1", "ten"]),
    "AlarmTopicArn": (["", TOPIC], ["alarms"]),
}


def test_a_value_that_cannot_be_right_is_refused():
    patterns = {
        name: parameter["AllowedPattern"]
        for name, parameter in source()["Parameters"].items()
        if "AllowedPattern" in parameter
    }
    assert patterns.keys() == VALUES.keys()
    for name, (taken, refused) in VALUES.items():
        assert [value for value in taken if not re.fullmatch(patterns[name], value)] == [], name
        assert [value for value in refused if re.fullmatch(patterns[name], value)] == [], name


def test_the_memory_is_what_the_benchmarks_recommend():
    memory = Stack().properties("AgentScheduler")["MemorySize"]
    assert f"**Give it {memory} MB.**" in (ROOT / "docs" / "performance.md").read_text()


def test_local_invoke_has_what_has_no_default():
    environment = json.loads((ROOT / "events" / "env.json").read_text())["Parameters"]
    parameters = source()["Parameters"]
    variables = source()["Resources"]["AgentScheduler"]["Properties"]["Environment"]["Variables"]
    needed = {name for name, value in variables.items() if "Ref" in value and "Default" not in parameters[value["Ref"]]}
    assert needed <= set(environment) <= set(variables)
