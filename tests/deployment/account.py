"""The AWS account that the tests deploy to."""

import io
import json
import zipfile

import boto3
from samtranslator.yaml_helper import yaml_parse

# The event source, which is also the name of its bus, and the account of the sample events.
EVENT_BUS = "aws.partner/buildkite.com/example-org/0000-0000-0000000"
ACCOUNT_ID = "111122223333"


class Account:
    """An account at an address, with the event bus that exists when an organization has added EventBridge."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        events = self.client("events")
        events.create_partner_event_source(Name=EVENT_BUS, Account=ACCOUNT_ID)
        events.create_event_bus(Name=EVENT_BUS, EventSourceName=EVENT_BUS)

    def client(self, service):
        return boto3.client(service, endpoint_url=self.endpoint)

    def create_stack(self, template, name, **parameters):
        """A stack of the template, as `sam deploy` makes it, without sam and with an empty function."""
        s3 = self.client("s3")
        s3.create_bucket(Bucket="upload")
        s3.put_object(Bucket="upload", Key="function.zip", Body=empty_function())
        body = template.read_text().replace("CodeUri: .\n", "CodeUri: s3://upload/function.zip\n")
        s3.put_object(Bucket="upload", Key="template.yml", Body=body)
        # The queue of the sample events.
        required = {"BuildkiteQueue": "kubernetes", "KubernetesClusterIdentifier": "example-cluster"}
        parameters = {"EventBridgeBusName": EVENT_BUS} | required | parameters
        self.client("cloudformation").create_stack(
            StackName=name, TemplateURL=f"{self.endpoint}/upload/template.yml", Parameters=listed(parameters)
        )
        return self.outputs(name)

    def deploy(self, template, name, **parameters):
        """A stack of a template without SAM, as `aws cloudformation deploy` makes it."""
        self.client("cloudformation").create_stack(
            StackName=name,
            # As JSON: moto takes !Condition for a function of that name.
            TemplateBody=json.dumps(yaml_parse(template.read_text())),
            Parameters=listed(parameters),
            Capabilities=["CAPABILITY_IAM"],
        )
        return self.outputs(name)

    def stack(self, name):
        return self.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]

    def outputs(self, name):
        return {output["OutputKey"]: output["OutputValue"] for output in self.stack(name)["Outputs"]}

    def delete_stack(self, name):
        self.client("cloudformation").delete_stack(StackName=name)


def listed(parameters):
    return [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]


def empty_function():
    """A package for Lambda with an empty program."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as files:
        files.writestr("bootstrap", "")
    return package.getvalue()
