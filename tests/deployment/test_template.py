"""template.yml: what SAM and CloudFormation make of it, for the defaults and for every switch."""

import json
import re

import pytest

from conftest import ROOT, run
from template import PSEUDO_PARAMETERS, REQUIRED, Stack, expanded, source

ALWAYS = {
    "AgentScheduler": "AWS::Lambda::Function",
    "AgentSchedulerEventInvokeConfig": "AWS::Lambda::EventInvokeConfig",
    "AgentSchedulerJobScheduled": "AWS::Events::Rule",
    "AgentSchedulerJobScheduledPermission": "AWS::Lambda::Permission",
    "AgentSchedulerRedrive": "AWS::Lambda::EventSourceMapping",
    "Role": "AWS::IAM::Role",
    "LogGroup": "AWS::Logs::LogGroup",
    "FailureQueue": "AWS::SQS::Queue",
    "FailureQueuePolicy": "AWS::SQS::QueuePolicy",
    "ParkingQueue": "AWS::SQS::Queue",
    "Dashboard": "AWS::CloudWatch::Dashboard",
    "FailureQueueAlarm": "AWS::CloudWatch::Alarm",
    "ParkingQueueAlarm": "AWS::CloudWatch::Alarm",
    "ErrorsAlarm": "AWS::CloudWatch::Alarm",
    "ThrottlesAlarm": "AWS::CloudWatch::Alarm",
    "DroppedEventsAlarm": "AWS::CloudWatch::Alarm",
    "FailedDeliveriesAlarm": "AWS::CloudWatch::Alarm",
    "FailedInvocationsAlarm": "AWS::CloudWatch::Alarm",
    "LostDeadLettersAlarm": "AWS::CloudWatch::Alarm",
    "UnservedJobsAlarm": "AWS::CloudWatch::Alarm",
}

# What the role may do at any setting: these, the parameter, and what the settings below add.
LOGS = {
    "Sid": "WriteLogs",
    "Effect": "Allow",
    "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
    "Resource": "<LogGroup.Arn>",
}
FAILURE_QUEUE = [
    {"Sid": "SendToFailureQueue", "Effect": "Allow", "Action": "sqs:SendMessage", "Resource": "<FailureQueue.Arn>"},
    {
        "Sid": "ReceiveFromFailureQueue",
        "Effect": "Allow",
        "Action": ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"],
        "Resource": "<FailureQueue.Arn>",
    },
]
BUS = REQUIRED["EventBridgeBusName"]
ENDPOINT = {
    "KubernetesApiServerEndpoint": "https://0123.gr7.us-east-1.eks.amazonaws.com",
    "KubernetesCertificateAuthorityData": "LS0tLS1CRUdJTg==",
}


def allow(sid, action, resource):
    return {"Sid": sid, "Effect": "Allow", "Action": action, "Resource": resource}


def read_token(parameter):
    return allow("ReadAgentToken", "ssm:GetParameter", parameter)


def find_cluster(arn="arn:aws:eks:us-east-1:111122223333:cluster/example-cluster"):
    return allow("FindCluster", "eks:DescribeCluster", arn)


def statements(stack):
    [policy] = stack.properties("Role")["Policies"]
    assert set(stack.properties("Role")) == {"Description", "AssumeRolePolicyDocument", "Policies"}, (
        "no managed policies"
    )
    return policy["PolicyDocument"]["Statement"]


def pattern(stack):
    return stack.properties("AgentSchedulerJobScheduled")["EventPattern"]


def test_sam_and_cfn_lint_find_nothing():
    run("sam", "validate", "--lint")
    assert run("cfn-lint", "template.yml") == ""


@pytest.mark.parametrize(
    "parameters, more",
    [
        ({}, {}),
        ({"CreateAccessEntry": "true"}, {"AccessEntry": "AWS::EKS::AccessEntry"}),
        ({"RedriveEnabled": "true", "ServeJobsWithoutQueue": "true", "AlarmTopicArn": "arn:aws:sns:us-east-1:1:t"}, {}),
        ({"VpcSubnets": "subnet-1", "VpcSecurityGroupIds": "sg-1", "ReservedConcurrency": "5"}, {}),
        (ENDPOINT, {}),
    ],
)
def test_the_stack_has_exactly_these_resources(parameters, more):
    resources = {name: resource["Type"] for name, resource in Stack(**parameters).resources.items()}
    assert resources == ALWAYS | more


def test_the_functions_variables_are_those_that_config_reads():
    config = (ROOT / "src" / "config.rs").read_text()
    read = set(re.findall(r'reader\.(?:required|optional)\("(\w+)"', config))
    lambda_sets = {name for name in read if name.startswith("AWS_")}
    variables = Stack().properties("AgentScheduler")["Environment"]["Variables"]
    assert len(read) > 10
    assert set(variables) == read - lambda_sets


def test_a_variable_has_the_value_of_the_parameter_of_the_same_name():
    variables = source()["Resources"]["AgentScheduler"]["Properties"]["Environment"]["Variables"]
    for variable, value in variables.items():
        assert value["Ref"].upper() == variable.replace("_", ""), variable


def test_the_function_is_what_the_bench_recommends():
    properties = Stack().properties("AgentScheduler")
    assert properties["Runtime"] == "provided.al2023"
    assert properties["Architectures"] == ["x86_64"]
    assert properties["MemorySize"] == 256
    assert f"Give it {properties['MemorySize']} MB" in (ROOT / "docs" / "performance.md").read_text()
    assert properties["Role"] == "<Role.Arn>"
    assert properties["LoggingConfig"] == {
        "LogFormat": "JSON",
        "ApplicationLogLevel": "INFO",
        "LogGroup": "<LogGroup>",
    }
    assert source()["Resources"]["AgentScheduler"]["Metadata"] == {
        "BuildMethod": "rust-cargolambda",
        "BuildProperties": {"Binary": "agent-scheduler"},
    }


def test_network_and_concurrency_are_left_out_unless_they_are_asked_for():
    properties = Stack().properties("AgentScheduler")
    assert not {"VpcConfig", "ReservedConcurrentExecutions"} & set(properties)

    stack = Stack(VpcSubnets="subnet-1,subnet-2", VpcSecurityGroupIds="sg-1", ReservedConcurrency="5")
    properties = stack.properties("AgentScheduler")
    assert properties["VpcConfig"] == {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert properties["ReservedConcurrentExecutions"] == "5"


@pytest.mark.parametrize("half", [{"VpcSubnets": "subnet-1"}, {"VpcSecurityGroupIds": "sg-1"}])
def test_half_a_network_reaches_lambda_which_refuses_it(half):
    assert "VpcConfig" in Stack(**half).properties("AgentScheduler")


def test_the_role_may_do_this_and_no_more():
    assert statements(Stack()) == [
        LOGS,
        read_token("arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token"),
        find_cluster(),
        *FAILURE_QUEUE,
    ]
    [trust] = Stack().properties("Role")["AssumeRolePolicyDocument"]["Statement"]
    assert trust == {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}


@pytest.mark.parametrize(
    "path, arn",
    [
        ("/buildkite/agent-token", "arn:aws:ssm:us-east-1:111122223333:parameter/buildkite/agent-token"),
        ("agent-token", "arn:aws:ssm:us-east-1:111122223333:parameter/agent-token"),
        # Another account's, shared with ours.
        (
            "arn:aws:ssm:us-east-1:444455556666:parameter/shared/t",
            "arn:aws:ssm:us-east-1:444455556666:parameter/shared/t",
        ),
    ],
)
def test_the_role_may_read_the_one_parameter(path, arn):
    stack = Stack(BuildkiteAgentTokenParameterPath=path, **ENDPOINT)
    assert statements(stack) == [LOGS, read_token(arn), *FAILURE_QUEUE]


def test_a_reference_to_secrets_manager_adds_that_secret():
    stack = Stack(BuildkiteAgentTokenParameterPath="/aws/reference/secretsmanager/ci/agent-token", **ENDPOINT)
    assert statements(stack) == [
        LOGS,
        read_token("arn:aws:ssm:us-east-1:111122223333:parameter/aws/reference/secretsmanager/ci/agent-token"),
        allow(
            "ReadAgentTokenInSecretsManager",
            "secretsmanager:GetSecretValue",
            "arn:aws:secretsmanager:us-east-1:111122223333:secret:ci/agent-token-??????",
        ),
        *FAILURE_QUEUE,
    ]


def test_a_key_of_ones_own_adds_decryption_with_it():
    key = "arn:aws:kms:us-east-1:111122223333:key/0123"
    assert allow("DecryptAgentToken", "kms:Decrypt", key) in statements(Stack(AgentTokenKmsKeyArn=key))


@pytest.mark.parametrize(
    "given, asks",
    [
        ([], True),
        (["KubernetesApiServerEndpoint"], True),
        (["KubernetesCertificateAuthorityData"], True),
        (["KubernetesApiServerEndpoint", "KubernetesCertificateAuthorityData"], False),
    ],
)
def test_the_role_may_describe_the_cluster_only_if_something_is_to_be_found(given, asks):
    stack = Stack(**{name: ENDPOINT[name] for name in given})
    assert (find_cluster() in statements(stack)) == asks


def test_a_network_adds_its_interfaces():
    added = [
        statement
        for statement in statements(Stack(VpcSubnets="subnet-1", VpcSecurityGroupIds="sg-1"))
        if "ec2:" in str(statement)
    ]
    assert added == [
        allow(
            "UseNetworkInterfaces",
            [
                "ec2:CreateNetworkInterface",
                "ec2:DeleteNetworkInterface",
                "ec2:AssignPrivateIpAddresses",
                "ec2:UnassignPrivateIpAddresses",
            ],
            ["arn:aws:ec2:us-east-1:111122223333:*/*", "arn:aws:ec2:us-east-1:*:subnet/*"],
        ),
        allow("FindNetworkInterfaces", ["ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets"], "*"),
        {
            "Sid": "NotFromTheFunction",
            "Effect": "Deny",
            "Action": "ec2:*",
            "Resource": "*",
            "Condition": {
                "ArnLike": {
                    "lambda:SourceFunctionArn": (
                        "arn:aws:lambda:us-east-1:111122223333:function:buildkite-agent-scheduler-*"
                    )
                }
            },
        },
    ]


def test_no_partition_is_assumed():
    china = Stack(pseudo={"AWS::Partition": "aws-cn", "AWS::Region": "cn-north-1"})
    assert ":aws:" not in json.dumps(statements(china))
    assert read_token("arn:aws-cn:ssm:cn-north-1:111122223333:parameter/buildkite/agent-token") in statements(china)
    assert china.outputs["DashboardUrl"].startswith("https://cn-north-1.console.amazonaws.cn/")
    gov = Stack(pseudo={"AWS::Partition": "aws-us-gov", "AWS::Region": "us-gov-west-1"})
    assert gov.outputs["DashboardUrl"].startswith("https://us-gov-west-1.console.amazonaws-us-gov.com/")


@pytest.mark.parametrize(
    "queue, rules, name",
    [
        ("default", ["queue=default"], "default-Queue"),
        ("linux,gpu", ["queue=linux", "queue=gpu"], "linux-Queue"),
    ],
)
def test_the_rule_takes_the_scheduled_jobs_of_the_queues(queue, rules, name):
    stack = Stack(BuildkiteQueue=queue)
    assert pattern(stack) == {
        "account": ["111122223333"],
        "detail-type": ["Job Scheduled"],
        "detail": {"job": {"agent_query_rules": rules}},
    }
    rule = stack.properties("AgentSchedulerJobScheduled")
    assert rule["Name"] == name
    assert rule["EventBusName"] == stack.parameters["EventBridgeBusName"]
    assert "State" not in rule, "enabled"


def test_with_jobs_without_queue_the_rule_takes_every_scheduled_job():
    assert pattern(Stack(ServeJobsWithoutQueue="true")) == {
        "account": ["111122223333"],
        "detail-type": ["Job Scheduled"],
        "detail": {"job": {"uuid": [{"exists": True}]}},
    }


def test_the_rule_retries_and_then_keeps_what_it_cannot_deliver():
    [target] = Stack().properties("AgentSchedulerJobScheduled")["Targets"]
    del target["Id"]
    # The whole event, so no Input, InputPath or InputTransformer.
    assert target == {
        "Arn": "<AgentScheduler.Arn>",
        "DeadLetterConfig": {"Arn": "<FailureQueue.Arn>"},
        "RetryPolicy": {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 21600},
    }
    assert Stack().properties("AgentSchedulerJobScheduledPermission") == {
        "Action": "lambda:InvokeFunction",
        "FunctionName": "<AgentScheduler>",
        "Principal": "events.amazonaws.com",
        "SourceArn": "<AgentSchedulerJobScheduled.Arn>",
    }
    [statement] = Stack().properties("FailureQueuePolicy")["PolicyDocument"]["Statement"]
    del statement["Sid"]
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": "<FailureQueue.Arn>",
        "Condition": {
            "ArnEquals": {"aws:SourceArn": f"arn:aws:events:us-east-1:111122223333:rule/{BUS}/default-Queue"}
        },
    }


def test_the_function_retries_twice_and_then_keeps_what_failed():
    assert Stack().properties("AgentSchedulerEventInvokeConfig") == {
        "FunctionName": "<AgentScheduler>",
        "Qualifier": "$LATEST",
        "MaximumRetryAttempts": 2,
        "MaximumEventAgeInSeconds": 21600,
        "DestinationConfig": {"OnFailure": {"Destination": "<FailureQueue.Arn>"}},
    }


def test_the_queues_keep_events_for_fourteen_days_and_park_what_fails_five_times():
    timeout = Stack().properties("AgentScheduler")["Timeout"]
    failure = Stack().properties("FailureQueue")
    assert failure.pop("VisibilityTimeout") >= 6 * timeout
    assert failure == {
        "MessageRetentionPeriod": 14 * 24 * 60 * 60,
        "SqsManagedSseEnabled": True,
        "RedrivePolicy": {"deadLetterTargetArn": "<ParkingQueue.Arn>", "maxReceiveCount": 5},
    }
    assert Stack().properties("ParkingQueue") == {
        "MessageRetentionPeriod": 14 * 24 * 60 * 60,
        "SqsManagedSseEnabled": True,
    }


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_the_redrive_is_there_and_switched_by_its_parameter(enabled):
    assert Stack(RedriveEnabled=enabled).properties("AgentSchedulerRedrive") == {
        "EventSourceArn": "<FailureQueue.Arn>",
        "FunctionName": "<AgentScheduler>",
        "Enabled": enabled == "true",
        "BatchSize": 10,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "ScalingConfig": {"MaximumConcurrency": 2},
    }


def test_the_access_entry_is_that_of_the_role_file():
    [_, binding] = (ROOT / "buildkite-role.yaml").read_text().split("\n---\n")
    subjects = dict(re.findall(r"kind: (User|Group)\n    name: (\S+)", binding))
    assert Stack(CreateAccessEntry="true").properties("AccessEntry") == {
        "ClusterName": "example-cluster",
        "PrincipalArn": "<Role.Arn>",
        "Username": subjects["User"],
        "KubernetesGroups": [subjects["Group"]],
    }


# Namespace, metric, dimensions, seconds that it has to last.
ALARMS = {
    "FailureQueueAlarm": (
        "AWS/SQS",
        "ApproximateNumberOfMessagesVisible",
        {"QueueName": "<FailureQueue.QueueName>"},
        60,
    ),
    "ParkingQueueAlarm": (
        "AWS/SQS",
        "ApproximateNumberOfMessagesVisible",
        {"QueueName": "<ParkingQueue.QueueName>"},
        60,
    ),
    "ErrorsAlarm": ("AWS/Lambda", "Errors", {"FunctionName": "<AgentScheduler>"}, 60),
    "ThrottlesAlarm": ("AWS/Lambda", "Throttles", {"FunctionName": "<AgentScheduler>"}, 900),
    "DroppedEventsAlarm": ("AWS/Lambda", "AsyncEventsDropped", {"FunctionName": "<AgentScheduler>"}, 60),
    "FailedDeliveriesAlarm": ("AWS/Lambda", "DestinationDeliveryFailures", {"FunctionName": "<AgentScheduler>"}, 60),
    "FailedInvocationsAlarm": (
        "AWS/Events",
        "FailedInvocations",
        {"EventBusName": BUS, "RuleName": "linux-Queue"},
        60,
    ),
    "LostDeadLettersAlarm": (
        "AWS/Events",
        "InvocationsFailedToBeSentToDlq",
        {"EventBusName": BUS, "RuleName": "linux-Queue"},
        60,
    ),
    "UnservedJobsAlarm": ("AgentScheduler", "JobsUnserved", {"FunctionName": "<AgentScheduler>"}, 60),
}


def test_every_alarm_watches_what_its_name_says():
    stack = Stack(BuildkiteQueue="linux,gpu")
    alarms = {name for name, kind in ALWAYS.items() if kind == "AWS::CloudWatch::Alarm"}
    assert alarms == set(ALARMS)
    for name, (namespace, metric, dimensions, seconds) in ALARMS.items():
        alarm = stack.properties(name)
        assert (alarm["Namespace"], alarm["MetricName"]) == (namespace, metric)
        assert {dimension["Name"]: dimension["Value"] for dimension in alarm["Dimensions"]} == dimensions
        assert alarm["Period"] * alarm["EvaluationPeriods"] == seconds
        assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)
        assert alarm["TreatMissingData"] == "notBreaching"
        assert "AlarmActions" not in alarm


def test_every_alarm_notifies_the_topic():
    topic = "arn:aws:sns:us-east-1:111122223333:alarms"
    stack = Stack(AlarmTopicArn=topic)
    assert all(stack.properties(name)["AlarmActions"] == [topic] for name in ALARMS)


def test_the_dashboard_shows_the_metrics_that_the_function_writes():
    body = json.loads(Stack().properties("Dashboard")["DashboardBody"])
    written = set(re.findall(r'"(Jobs\w+|TimeToJob)"', (ROOT / "src" / "metrics.rs").read_text()))
    shown = set(re.findall(r"(Jobs[A-Z]\w+|TimeToJob)", json.dumps(body)))
    assert shown == written == {"JobsCreated", "JobsExisting", "JobsIgnored", "JobsFailed", "JobsUnserved", "TimeToJob"}
    assert "${" not in json.dumps(body).replace("${PROP(", "")


def test_the_outputs_are_commands_with_the_stacks_values_in_them():
    stack = Stack(KubernetesNamespace="ci")
    assert stack.outputs["CreateAccessEntryCommand"] == (
        "aws eks create-access-entry --region us-east-1 --cluster-name example-cluster --principal-arn <Role.Arn>"
        " --username buildkite-on-demand-agent-scheduler --kubernetes-groups buildkite-on-demand-agent-scheduler"
    )
    assert stack.outputs["CreateIdentityMappingCommand"] == (
        "eksctl create iamidentitymapping --region us-east-1 --cluster example-cluster --arn <Role.Arn>"
        " --username buildkite-on-demand-agent-scheduler --group buildkite-on-demand-agent-scheduler"
    )
    assert stack.outputs["CreateNamespaceCommand"] == "kubectl create namespace ci"
    assert stack.outputs["GrantPermissionsCommand"] == "kubectl apply -f buildkite-role.yaml --namespace ci"
    assert Stack(AgentTokenSecretName="gpu-token").outputs["GrantPermissionsCommand"] == (
        r"sed 's/\[buildkite-agent-token\]/[buildkite-agent-token, gpu-token]/' buildkite-role.yaml"
        " | kubectl apply -f - --namespace buildkite"
    )
    mapped = set(Stack(CreateAccessEntry="true").outputs)
    assert set(stack.outputs) - mapped == {"CreateAccessEntryCommand", "CreateIdentityMappingCommand"}


def test_every_parameter_is_described_grouped_and_explained_in_the_readme():
    template = expanded()
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert sorted(grouped) == sorted(template["Parameters"])
    _, deploy = (ROOT / "README.md").read_text().split("\n## Deploy\n")
    prompts = [row.split("|")[1] for row in deploy.split("\n## ")[0].splitlines() if row.startswith("|")]
    for name, parameter in template["Parameters"].items():
        assert parameter["Description"].endswith("."), name
        assert any(f"`{name}`" in prompt for prompt in prompts), name
        if "AllowedPattern" in parameter:
            assert parameter["ConstraintDescription"].startswith("must be "), name


# A value that the template takes and one that it refuses before anything is deployed.
VALUES = [
    (
        "EventBridgeBusName",
        ["aws.partner/buildkite.com/acme/0123-4567"],
        ["arn:aws:events:us-east-1:1:event-bus/b", ""],
    ),
    ("BuildkiteQueue", ["default", "linux,gpu", "a_b-C9"], ["", "linux, gpu", "a,,b", "queue=a", "a,", "a" * 59]),
    ("BuildkiteAgentTokenParameterPath", ["/buildkite/agent-token", "token"], ["", "buildkite/agent-token", "/a b"]),
    ("BuildkiteAgentTokenParameterPath", ["arn:aws:ssm:us-east-1:111122223333:parameter/t"], ["arn:aws:s3:::bucket"]),
    ("AgentTokenKmsKeyArn", ["", "arn:aws:kms:us-east-1:111122223333:key/0-1"], ["alias/a", "0123"]),
    (
        "BuildkiteAgentTags",
        ["", "os=linux", "os=linux,flags=a=b"],
        ["linux", "=linux", "os=linux, team=web", "os=", "queue=a", "os=linux,queue=a"],
    ),
    ("KubernetesClusterIdentifier", ["example-cluster"], ["", "arn:aws:eks:us-east-1:1:cluster/c", "-a"]),
    ("KubernetesNamespace", ["buildkite"], ["", "Buildkite", "a_b", "-a", "a-", "a" * 64]),
    (
        "KubernetesApiServerEndpoint",
        ["", ENDPOINT["KubernetesApiServerEndpoint"]],
        ["http://a", "a:6443", "https://a/b"],
    ),
    ("KubernetesCertificateAuthorityData", ["", "LS0tLS1CRUdJTg=="], ["-----BEGIN CERTIFICATE-----"]),
    ("AgentTokenSecretName", ["buildkite-agent-token", "a.b"], ["", "Token", "a_b", "a..b"]),
    ("VpcSubnets", ["", "subnet-0a1b"], ["vpc-1", "subnet-"]),
    ("VpcSecurityGroupIds", ["", "sg-0a1b"], ["subnet-1"]),
    ("ReservedConcurrency", ["", "2", "10", "1000"], ["0", "1", "-1", "ten"]),
    ("AlarmTopicArn", ["", "arn:aws:sns:us-east-1:111122223333:alarms"], ["alarms"]),
]


@pytest.mark.parametrize("name, taken, refused", VALUES)
def test_a_value_that_cannot_be_right_is_refused(name, taken, refused):
    allowed = re.compile(source()["Parameters"][name]["AllowedPattern"])
    assert all(allowed.fullmatch(value) for value in taken), taken
    assert not [value for value in refused if allowed.fullmatch(value)]


def test_every_pattern_is_tried():
    patterns = {name for name, parameter in source()["Parameters"].items() if "AllowedPattern" in parameter}
    assert patterns == {name for name, _, _ in VALUES}


def test_local_invoke_has_what_has_no_default():
    environment = json.loads((ROOT / "events" / "env.json").read_text())["Parameters"]
    parameters = source()["Parameters"]
    variables = source()["Resources"]["AgentScheduler"]["Properties"]["Environment"]["Variables"]
    needed = {variable for variable, value in variables.items() if "Default" not in parameters[value["Ref"]]}
    assert needed <= set(environment) <= set(variables)


def test_pseudo_parameters_are_all_that_the_template_knows_of_its_account():
    text = (ROOT / "template.yml").read_text()
    assert set(re.findall(r"AWS::(?:AccountId|Partition|Region|StackName|URLSuffix)", text)) == set(PSEUDO_PARAMETERS)
    assert not re.search(r"\b[0-9]{12}\b", text)
