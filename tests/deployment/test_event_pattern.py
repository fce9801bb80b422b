"""Which events the rule takes: the pattern of a deployed stack, judged by moto's matcher and delivered by moto."""

import copy
import json

import pytest
from moto.events.models import EventPattern

from account import EVENT_BUS
from conftest import ROOT


def sample(name):
    return json.loads((ROOT / "events" / f"{name}.json").read_text())


def scheduled(*rules):
    """The sample of a scheduled job, with these agent query rules."""
    event = sample("job-scheduled")
    event["detail"]["job"]["agent_query_rules"] = list(rules)
    return event


def without_rules():
    event = sample("job-scheduled")
    del event["detail"]["job"]["agent_query_rules"]
    return event


SAMPLES = {path.stem: json.loads(path.read_text()) for path in (ROOT / "events").glob("job-*.json")}
EVENTS = SAMPLES | {
    "our queue last of three rules": scheduled("os=linux", "team=web", "queue=kubernetes"),
    "queue linux": scheduled("queue=linux"),
    "queue windows": scheduled("queue=windows"),
    "a queue that begins as ours": scheduled("queue=kubernetes-large"),
    "a queue that is the beginning of ours": scheduled("queue=kube"),
    "our queue in capitals": scheduled("queue=KUBERNETES"),
    "our queue's name as another tag": scheduled("team=kubernetes"),
    "no queue among the rules": scheduled("os=linux"),
    "no rules": scheduled(),
    "rules left out": without_rules(),
    "another account": sample("job-scheduled") | {"account": "444455556666"},
}

OUR_QUEUE = {
    "job-scheduled",
    "job-scheduled-2019",
    "job-unserved-tag",
    "job-unknown-definition",
    "our queue last of three rules",
}
STACKS = {
    "one-queue": ({"BuildkiteQueue": "kubernetes"}, OUR_QUEUE),
    "two-queues": ({"BuildkiteQueue": "linux,kubernetes"}, OUR_QUEUE | {"queue linux"}),
    # All that is scheduled: the function itself leaves alone what is for another queue.
    "jobs-without-queue": (
        {"BuildkiteQueue": "kubernetes", "ServeJobsWithoutQueue": "true"},
        EVENTS.keys() - {"job-finished", "another account"},
    ),
}


@pytest.fixture(params=STACKS)
def stack(request, account):
    """The outputs of a stack with these parameters, and the events that are for it."""
    parameters, wanted = STACKS[request.param]
    yield account.create_stack(ROOT / "template.yml", request.param, **parameters), wanted
    account.delete_stack(request.param)


def test_the_pattern_takes_the_events_that_it_should_and_no_others(account, stack):
    outputs, wanted = stack
    rule = account.client("events").describe_rule(Name=outputs["RuleName"], EventBusName=EVENT_BUS)
    pattern = EventPattern.load(rule["EventPattern"])
    assert {name for name, event in EVENTS.items() if pattern.matches_event(copy.deepcopy(event))} == wanted


def test_the_rule_delivers_whole_events_of_the_partner_bus_to_the_function(account, stack):
    outputs, wanted = stack
    events, sqs = account.client("events"), account.client("sqs")
    rule = {"Rule": outputs["RuleName"], "EventBusName": EVENT_BUS}

    [target] = events.list_targets_by_rule(**rule)["Targets"]
    assert target["Arn"] == outputs["FunctionArn"]
    assert not target.keys() & {"Input", "InputPath", "InputTransformer"}

    # moto delivers to no function; a queue in its place shows what would reach it.
    queue = sqs.create_queue(QueueName="in-place-of-the-function")["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_targets(**rule, Targets=[target | {"Arn": queue_arn}])

    # moto says itself what account an event is from, so that case is the other test's alone.
    for name in EVENTS.keys() - {"another account"}:
        put(events, name, EVENTS[name])
    assert {message["resources"][0] for message in take_all(sqs, queue)} == wanted
    sqs.delete_queue(QueueUrl=queue)


def put(events, name, event):
    """Puts an event on the partner bus, and its name into the field for resources, which Buildkite leaves empty."""
    entry = {"Source": event["source"], "DetailType": event["detail-type"], "Detail": json.dumps(event["detail"])}
    events.put_events(Entries=[entry | {"EventBusName": EVENT_BUS, "Resources": [name]}])


def take_all(sqs, queue):
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        yield from (json.loads(message["Body"]) for message in messages)
