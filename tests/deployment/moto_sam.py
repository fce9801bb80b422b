#!/usr/bin/env python3
"""An AWS account to deploy to that is none: moto, with the gaps mended that a SAM stack falls through.

Prints the address to give as AWS_ENDPOINT_URL, and serves until its input ends. What moto says is worth as much as moto
does: test_deploy.py lists what it does not do.
"""

import json
import os
import sys

# The account of the sample events.
os.environ["MOTO_ACCOUNT_ID"] = "111122223333"
# moto makes what a stack holds in this region, whatever region the stack is in, unless it is told.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

from moto.cloudformation.models import CloudFormationBackend
from moto.events.models import EventsBackend
from moto.iam.models import Role
from moto.server import ThreadedMotoServer
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from template import NoManagedPolicies


def patch(cls):
    """Puts the decorated function in the place of the method of its name, which it gets as its first argument."""

    def put(replacement):
        original = getattr(cls, replacement.__name__)
        setattr(cls, replacement.__name__, lambda *args, **kwargs: replacement(original, *args, **kwargs))

    return put


def expand(template, parameters):
    """What CloudFormation makes of a SAM template, by SAM's own translator; any other template as it is."""
    parsed = yaml_parse(template)
    if parsed.get("Transform") != "AWS::Serverless-2016-10-31":
        return template
    return json.dumps(transform(parsed, dict(parameters), NoManagedPolicies()))


def written(value):
    """A parameter as it was given; moto takes the previous value of one in the form that it has parsed it to."""
    return ",".join(value) if isinstance(value, list) else str(value)


# moto knows no transforms: it would report the stack as made, and leave out every resource of a type that is SAM's.
@patch(CloudFormationBackend)
def create_stack(original, self, name, template, parameters, **options):
    return original(self, name=name, template=expand(template, parameters), parameters=parameters, **options)


@patch(CloudFormationBackend)
def create_change_set(original, self, template, parameters, **options):
    parameters = {name: written(value) for name, value in parameters.items()}
    return original(self, template=expand(template, parameters), parameters=parameters, **options)


# moto makes the resources of a change set, and forgets its tags and outputs. sam knows its own bucket by both.
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


# moto keeps just what is behind the last slash, and finds no partner's bus, whose name is all slashes.
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


if __name__ == "__main__":
    # By this name, not by its address: moto and sam know an S3 address of a bucket by "localhost".
    server = ThreadedMotoServer("localhost", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    print(f"http://localhost:{port}", flush=True)
    sys.stdin.read()
    server.stop()
