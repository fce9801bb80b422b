#!/usr/bin/env python3
"""A stand-in for an AWS account: moto, with fixes for what a SAM stack needs and moto lacks.

Prints the address for AWS_ENDPOINT_URL, and serves until its input ends. test_deploy.py lists what moto does not do.
"""

import json
import os
import re
import sys

# The account of the sample events.
os.environ["MOTO_ACCOUNT_ID"] = "111122223333"
# By default moto makes the resources of every stack in one region, which this sets.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

from moto.cloudformation.models import CloudFormationBackend
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.common_models import CloudFormationModel
from moto.events.models import EventsBackend
from moto.iam.models import Role
from moto.server import ThreadedMotoServer
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from template import NoManagedPolicies


def patch(cls):
    """Replaces the method of the same name with the decorated function, which gets the original as its first argument."""

    def put(replacement):
        original = getattr(cls, replacement.__name__)
        setattr(cls, replacement.__name__, lambda *args, **kwargs: replacement(original, *args, **kwargs))

    return put


def expand(template, parameters):
    """A SAM template as SAM's own translator expands it; any other template as it is."""
    parsed = yaml_parse(template)
    if parsed.get("Transform") != "AWS::Serverless-2016-10-31":
        return template
    return json.dumps(transform(parsed, dict(parameters), NoManagedPolicies()))


def written(value):
    """A parameter as it was given; moto keeps the previous value parsed."""
    return ",".join(value) if isinstance(value, list) else str(value)


# moto ignores transforms: it reports success, and leaves out every resource of SAM's own types.
@patch(CloudFormationBackend)
def create_stack(original, self, name, template, parameters, **options):
    return original(self, name=name, template=expand(template, parameters), parameters=parameters, **options)


@patch(CloudFormationBackend)
def create_change_set(original, self, template, parameters, **options):
    parameters = {name: written(value) for name, value in parameters.items()}
    return original(self, template=expand(template, parameters), parameters=parameters, **options)


# moto makes the resources of a change set, but loses its tags and outputs. sam finds its own bucket by both.
@patch(CloudFormationBackend)
def execute_change_set(original, self, change_set_name, stack_name=None):
    original(self, change_set_name=change_set_name, stack_name=stack_name)
    change_set = self.describe_change_set(change_set_name)
    stack = change_set.stack
    stack.tags = change_set.tags or {}
    stack.parameters = change_set.parameters
    stack._parse_template()
    stack.description = stack.template_dict.get("Description")
    stack.output_map = stack._create_output_map()


# moto keeps only the part after the last slash, and so finds no partner bus.
@patch(EventsBackend)
def _normalize_event_bus_arn(_original, _self, event_bus_arn):
    return (event_bus_arn or "default").split(":event-bus/")[-1]


# moto keeps a role's own policy as Python has it, with a None for each statement that is !Ref AWS::NoValue.
@patch(Role)
def put_policy(original, self, policy_name, policy_json):
    if isinstance(policy_json, dict):
        statements = [statement for statement in policy_json["Statement"] if statement is not None]
        policy_json = json.dumps(policy_json | {"Statement": statements})
    return original(self, policy_name, policy_json)


class AlarmOfStack(CloudFormationModel):
    """moto makes alarms, but not those of a stack."""

    # moto reads the service of a model from this.
    __module__ = "moto.cloudwatch.models"

    def __init__(self, alarm):
        self.alarm, self.physical_resource_id = alarm, alarm.name

    @staticmethod
    def cloudformation_name_type():
        return "AlarmName"

    @staticmethod
    def cloudformation_type():
        return "AWS::CloudWatch::Alarm"

    @staticmethod
    def is_created():
        return True

    @classmethod
    def create_from_cloudformation_json(cls, resource_name, cloudformation_json, account_id, region_name, **_):
        properties = cloudformation_json["Properties"]
        options = {re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower(): value for key, value in properties.items()}
        options["description"] = options.pop("alarm_description")
        backend = cloudwatch_backends[account_id][region_name]
        # An alarm of an expression has none of its own.
        options.pop("metrics", None)
        absent = dict.fromkeys(["namespace", "metric_name", "period", "statistic"])
        return cls(
            backend.put_metric_alarm(name=resource_name, **absent | {"alarm_actions": [], "dimensions": []} | options)
        )

    @classmethod
    def delete_from_cloudformation_json(cls, resource_name, _json, account_id, region_name):
        cloudwatch_backends[account_id][region_name].delete_alarms([resource_name])

    @staticmethod
    def has_cfn_attr(attribute):
        return attribute == "Arn"

    def get_cfn_attribute(self, _attribute):
        return self.alarm.alarm_arn


if __name__ == "__main__":
    # Not 127.0.0.1: moto and sam recognise a bucket's address by "localhost".
    server = ThreadedMotoServer("localhost", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    print(f"http://localhost:{port}", flush=True)
    sys.stdin.read()
    server.stop()
