"""Alarms, dashboard and saved queries: they ask for what AWS counts and what the function really writes."""

import json
import re
from datetime import UTC, datetime
from uuid import uuid4

import pytest

import dashboard
from conftest import ROOT, TARGET, Lab
from runtime import Function
from template import Stack

# What AWS documents of its own metrics: their dimensions and names.
METRICS = {
    "AWS/SQS": ({"QueueName"}, {"ApproximateNumberOfMessagesVisible"}),
    "AWS/Lambda": (
        {"FunctionName"},
        {"Invocations", "Duration", "Errors", "Throttles", "AsyncEventsDropped", "DestinationDeliveryFailures"},
    ),
    "AWS/Events": ({"EventBusName", "RuleName"}, {"FailedInvocations", "InvocationsFailedToBeSentToDlq"}),
}
OURS = "AgentScheduler"
# What an alarm starts with, other than the first count.
LIMITS = {
    # Throttling is what a limit is for, unless it lasts.
    "ThrottlesAlarm": ("GreaterThanThreshold", 0, "notBreaching", 900),
    "WaitingJobsAlarm": ("GreaterThanThreshold", 900, "notBreaching", 180),
    "FailedSweepsAlarm": ("GreaterThanThreshold", 0, "notBreaching", 180),
    "MissingSweepsAlarm": ("LessThanThreshold", 1, "breaching", 300),
}
LINK = "https://buildkite.com/{}/', pipeline, '/builds/', build, '#', job) as link"


@pytest.fixture(scope="module")
def lines():
    """What the function writes, as JSON, of an event that it creates, finds created, ignores, cannot serve, refuses, and fails."""
    names = ["job-scheduled", "job-scheduled", "job-other-queue", "job-unserved-tag", "job-unknown-definition"]
    events = [json.loads((ROOT / "events" / f"{name}.json").read_text()) for name in names]
    failing = json.loads((ROOT / "events" / "job-scheduled.json").read_text())
    failing["detail"]["job"] |= {"uuid": str(uuid4()), "agent_query_rules": ["queue=linux", "cpu=many"]}
    # The time to a Job is only counted for an event of these days.
    events[0]["time"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with Lab(events=["job-unknown-definition"]) as lab:
        # Lambda sets these variables from the function's settings.
        log = Stack().properties("AgentScheduler")["LoggingConfig"]
        level, form = log["ApplicationLogLevel"], log["LogFormat"]
        variables = lab.variables | {"AWS_LAMBDA_LOG_FORMAT": form, "AWS_LAMBDA_LOG_LEVEL": level}
        with Function(TARGET / "debug" / "agent-scheduler", variables) as function:
            for event in events:
                function.invoke(event)
        # Buildkite does not know the queue, so that it refuses the stack.
        with Function(TARGET / "debug" / "agent-scheduler", variables | {"BUILDKITE_QUEUE": "linux"}) as other:
            other.invoke(failing)
    return [json.loads(line) for line in [*function.printed, *other.printed] if line.startswith("{")]


@pytest.fixture(scope="module")
def metrics(lines):
    """Those that the function writes."""
    directives = [directive for line in lines for directive in line.get("_aws", {}).get("CloudWatchMetrics", [])]
    assert {directive["Namespace"] for directive in directives} == {OURS}
    return {metric["Name"] for directive in directives for metric in directive["Metrics"]}


def of_type(kind, stack=None):
    resources = (stack or Stack()).resources
    return {name: each["Properties"] for name, each in resources.items() if each["Type"] == f"AWS::{kind}"}


def widgets(kind, stack=None):
    [board] = of_type("CloudWatch::Dashboard", stack).values()
    return [each["properties"] for each in json.loads(board["DashboardBody"])["widgets"] if each["type"] == kind]


def test_an_alarm_watches_a_metric_that_exists_and_starts_with_its_limit(named):
    metrics = named[1]
    stack = Stack(BuildkiteQueue="linux,gpu")
    rule = stack.properties("AgentSchedulerJobScheduled")
    there = {"<AgentScheduler>", "<FailureQueue.QueueName>", "<ParkingQueue.QueueName>", rule["EventBusName"]}
    watched = []
    alarms = of_type("CloudWatch::Alarm", stack)
    events = alarms.pop("MissingEventsAlarm")
    for metric in [metric["MetricStat"]["Metric"] for metric in events["Metrics"] if "MetricStat" in metric]:
        assert (metric["Namespace"], metric["MetricName"] in metrics) == (OURS, True)
        assert metric["Dimensions"] == [{"Name": "FunctionName", "Value": "<AgentScheduler>"}]
    assert (events["EvaluationPeriods"], events["DatapointsToAlarm"]) == (10, 3)
    for name, alarm in alarms.items():
        dimensions = {dimension["Name"]: dimension["Value"] for dimension in alarm["Dimensions"]}
        names, counted = METRICS.get(alarm["Namespace"], ({"FunctionName"}, metrics))
        assert alarm["MetricName"] in counted, name
        assert (dimensions.keys(), {*dimensions.values()} - there) in [(names, set()), (names, {rule["Name"]})], name
        limit = LIMITS.get(name, ("GreaterThanThreshold", 0, "notBreaching", 60))
        lasts = alarm["Period"] * alarm["EvaluationPeriods"]
        assert (alarm["ComparisonOperator"], alarm["Threshold"], alarm["TreatMissingData"], lasts) == limit, name
        watched.append((alarm["MetricName"], dimensions))
    assert all(watched.count(each) == 1 for each in watched)


@pytest.fixture(scope="module")
def named():
    """What the dashboard asks for, and the names of our own metrics among it; src/report.rs proves that these are all."""
    shown = [metric for widget in widgets("metric") for metric in widget["metrics"]]
    searched = set(re.findall(r'MetricName="(\w+)"', str(shown)))
    named = [metric for metric in shown if isinstance(metric[0], str)]
    return named, searched | {name for space, name, *_ in named if space == OURS}


def test_the_dashboard_shows_the_metrics_that_the_function_writes_and_every_alarm(metrics, named):
    named, ours = named
    assert metrics <= ours
    assert all(name in METRICS[space][1] for space, name, *_ in named if space != OURS)
    [alarms] = widgets("alarm")
    assert alarms["alarms"] == [f"<{alarm}.Arn>" for alarm in of_type("CloudWatch::Alarm")]


def test_the_queries_ask_for_fields_that_the_log_has(lines):
    queries = {name: " ".join(query["QueryString"].split()) for name, query in of_type("Logs::QueryDefinition").items()}
    [failed] = [line for line in lines if line.get("level") == "ERROR"]
    written = {name for line in lines for name in line}
    for name, query in queries.items():
        fields = set(re.findall(r"\w+", re.sub(r"'[^']*'|concat|as link|@timestamp", "", query.split("|")[0])))
        assert fields - {"fields"} <= (set(failed) if name == "FailedJobsQuery" else written), name
    [table] = widgets("log")
    assert table["query"] == f"SOURCE '<LogGroup>' | {queries['FailedJobsQuery']}"
    assert LINK.format("example-org") in table["query"]
    # A bus that is not a partner's.
    [table] = widgets("log", Stack(EventBridgeBusName="events"))
    assert LINK.format("") in table["query"]


def test_the_picture_in_docs_is_that_of_the_dashboard():
    assert (ROOT / "docs" / "dashboard.svg").read_text() == dashboard.picture(), "run `make dashboard`"
