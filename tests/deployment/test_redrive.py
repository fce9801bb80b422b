"""A redrive: the queues are those of a deployed stack, in moto; the function is the real one, on the lab's stand-ins.

Between them Lambda would poll. The test does that, as it is documented: it receives as many messages as the stack's
event source mapping says, hands them to the function as one event, and deletes what the function does not report as
failed. So this does not show that Lambda does so, nor that the role may.
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
"""

import json
import uuid
from datetime import UTC, datetime

import pytest

from account import ACCOUNT_ID, EVENT_BUS
from conftest import ROOT, TARGET, Lab
from runtime import Function

STACK = "redrive"


@pytest.fixture
def failure_queue(account):
    """The failure queue of a new stack."""
    account.create_stack(ROOT / "template.yml", STACK)
    # Else moto itself takes the messages, to a function in a container that it fetches from somewhere.
    functions = account.client("lambda")
    [mapping] = functions.list_event_source_mappings()["EventSourceMappings"]
    functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    yield FailureQueue(account)
    account.delete_stack(STACK)


class FailureQueue:
    """The queue with what the stack made around it, and the poller that Lambda has there."""

    def __init__(self, account):
        outputs = account.outputs(STACK)
        functions = account.client("lambda")
        self.sqs = account.client("sqs")
        self.url, self.parking_url = outputs["FailureQueueUrl"], outputs["ParkingQueueUrl"]
        self.function = functions.get_function_configuration(FunctionName=outputs["FunctionName"])
        [self.mapping] = functions.list_event_source_mappings()["EventSourceMappings"]

    def send(self, body, attributes=None):
        """Puts a message into the queue; returns its id."""
        attributes = {name: {"DataType": "String", "StringValue": value} for name, value in (attributes or {}).items()}
        return self.sqs.send_message(QueueUrl=self.url, MessageBody=body, MessageAttributes=attributes)["MessageId"]

    def poll(self, function):
        """Takes a batch through the function as Lambda does; returns the messages and the function's answer."""
        messages = self.sqs.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=self.mapping["BatchSize"],
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages", [])
        if not messages:
            return [], None
        answer = function.invoke({"Records": [self.record(message) for message in messages]})
        # Lambda reads them only where the mapping says so.
        reports = "ReportBatchItemFailures" in self.mapping.get("FunctionResponseTypes", [])
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"] if reports}
        for message in messages:
            receipt = {"QueueUrl": self.url, "ReceiptHandle": message["ReceiptHandle"]}
            if message["MessageId"] in failed:
                # In place of the wait until the message is visible again.
                self.sqs.change_message_visibility(**receipt, VisibilityTimeout=0)
            else:
                self.sqs.delete_message(**receipt)
        return messages, answer

    def record(self, message):
        """https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html#example-standard-queue-message-event"""
        attributes = {
            name: {
                "stringValue": attribute["StringValue"],
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": attribute["DataType"],
            }
            for name, attribute in message.get("MessageAttributes", {}).items()
        }
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": attributes,
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self.mapping["EventSourceArn"],
            "awsRegion": "us-east-1",
        }

    def left(self, url):
        """How many messages a queue holds, those that are received and not yet deleted included."""
        attributes = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return int(attributes["ApproximateNumberOfMessages"]) + int(attributes["ApproximateNumberOfMessagesNotVisible"])


def function_on(lab, failure_queue):
    """The function with the variables that the stack gives it, but led to the lab."""
    variables = failure_queue.function["Environment"]["Variables"]
    variables = {name: str(value) for name, value in variables.items()} | lab.variables
    return Function(TARGET / "debug" / "agent-scheduler", variables)


def scheduled():
    """The sample event, of a job of its own."""
    event = json.loads((ROOT / "events" / "job-scheduled.json").read_text())
    event["detail"]["job"]["uuid"] = str(uuid.uuid4())
    # Of an event that is older than JobTtlSeconds, Buildkite is asked first.
    event["time"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return event


def failed_invocation(event):
    """What Lambda writes when the function has failed for an event three times."""
    return json.dumps(
        {
            "version": "1.0",
            "timestamp": "2026-01-15T10:05:00.000Z",
            "requestContext": {
                "requestId": str(uuid.uuid4()),
                "functionArn": f"arn:aws:lambda:us-east-1:{ACCOUNT_ID}:function:agent-scheduler:$LATEST",
                "condition": "RetriesExhausted",
                "approximateInvokeCount": 3,
            },
            "requestPayload": event,
            "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
            "responsePayload": {"errorType": "ClusterUnavailable", "errorMessage": "cannot create Job"},
        }
    )


# What EventBridge says beside an event that it could not deliver.
OF_THE_RULE = {
    "RULE_ARN": f"arn:aws:events:us-east-1:{ACCOUNT_ID}:rule/{EVENT_BUS}/kubernetes-Queue",
    "TARGET_ARN": f"arn:aws:lambda:us-east-1:{ACCOUNT_ID}:function:agent-scheduler",
    "ERROR_CODE": "NO_PERMISSIONS",
    "ERROR_MESSAGE": "User is not authorized to perform lambda:InvokeFunction",
    "EXHAUSTED_RETRY_CONDITION": "MaximumRetryAttempts",
    "RETRY_ATTEMPTS": "0",
}

# Nothing that the function could read; it stands for all that fails each time.
BAD = '{"hello": "world"}'


def job_uuids(lab):
    return {job["metadata"]["labels"]["buildkite.com/job-uuid"] for job in lab.jobs}


def uuids(events):
    return {event["detail"]["job"]["uuid"] for event in events}


def test_a_failed_invocation_and_a_dead_letter_of_the_rule_become_jobs(failure_queue):
    failed, undelivered = scheduled(), scheduled()
    failure_queue.send(failed_invocation(failed))
    failure_queue.send(json.dumps(undelivered), OF_THE_RULE)

    with Lab() as lab, function_on(lab, failure_queue) as function:
        messages, answer = failure_queue.poll(function)
    assert len(messages) == 2
    assert answer == {"batchItemFailures": []}
    assert len(lab.jobs) == 2
    assert job_uuids(lab) == uuids([failed, undelivered])
    assert failure_queue.left(failure_queue.url) == 0


def test_of_ten_with_a_bad_one_just_that_one_is_reported_and_stays(failure_queue):
    events = [scheduled() for _ in range(9)]
    for event in events[:5]:
        failure_queue.send(failed_invocation(event))
    bad = failure_queue.send(BAD)
    for event in events[5:]:
        failure_queue.send(json.dumps(event), OF_THE_RULE)

    with Lab() as lab, function_on(lab, failure_queue) as function:
        messages, answer = failure_queue.poll(function)
    assert len(messages) == 10
    assert answer == {"batchItemFailures": [{"itemIdentifier": bad}]}
    assert job_uuids(lab) == uuids(events)
    assert failure_queue.left(failure_queue.url) == 1
    assert failure_queue.left(failure_queue.parking_url) == 0


def test_what_fails_five_times_is_parked_as_it_was_and_the_others_are_gone(failure_queue):
    event = scheduled()
    bad = failure_queue.send(BAD, OF_THE_RULE)
    failure_queue.send(failed_invocation(event))

    batches = []
    with Lab() as lab, function_on(lab, failure_queue) as function:
        while messages := failure_queue.poll(function)[0]:
            batches.append({message["MessageId"] for message in messages})
    assert len(batches[0]) == 2
    assert batches[1:] == [{bad}] * 4
    assert job_uuids(lab) == uuids([event])
    assert failure_queue.left(failure_queue.url) == 0

    parking = {"QueueUrl": failure_queue.parking_url, "MessageAttributeNames": ["All"]}
    [parked] = failure_queue.sqs.receive_message(**parking)["Messages"]
    assert parked["MessageId"] == bad
    assert parked["Body"] == BAD
    assert parked["MessageAttributes"]["ERROR_CODE"]["StringValue"] == "NO_PERMISSIONS"


def test_an_event_that_is_there_in_both_forms_makes_one_job(failure_queue):
    event = scheduled()
    failure_queue.send(failed_invocation(event))
    failure_queue.send(json.dumps(event), OF_THE_RULE)

    with Lab() as lab, function_on(lab, failure_queue) as function:
        assert failure_queue.poll(function)[1] == {"batchItemFailures": []}
    assert len(lab.jobs) == 1
    assert failure_queue.left(failure_queue.url) == 0
