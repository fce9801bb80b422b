"""A template as CloudFormation would see it: expanded by SAM's own translator, then resolved for given parameters.

A resource stands for itself: `!Ref Role` becomes `<Role>`, `!GetAtt Role.Arn` becomes `<Role.Arn>`.
"""

import re
from functools import cache
from pathlib import Path

from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

TEMPLATE = Path(__file__).resolve().parents[2] / "template.yml"

PSEUDO_PARAMETERS = {
    "AWS::AccountId": "111122223333",
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "buildkite-agent-scheduler",
}

# The parameters without a default.
REQUIRED = {
    "EventBridgeBusName": "aws.partner/buildkite.com/example-org/0123-4567",
    "BuildkiteQueue": "kubernetes",
    "KubernetesClusterIdentifier": "example-cluster",
}

NO_VALUE = object()


class NoManagedPolicies:
    """SAM asks for the managed policies of the role that it would make; ours has none."""

    def load(self):
        return {}


def source(path=TEMPLATE):
    """A template as it was written."""
    return yaml_parse(path.read_text())


@cache
def expanded():
    """Without the transform; parameters, conditions and functions are still there."""
    # The translator wants an artifact where `sam build` would have put one.
    template = source()
    template["Resources"]["AgentScheduler"]["Properties"]["CodeUri"] = "s3://bucket/key"
    return transform(template, {}, NoManagedPolicies())


class Stack:
    """The resources and outputs that a deploy of template.yml with these parameters would ask for."""

    required = REQUIRED

    @staticmethod
    def read():
        return expanded()

    def __init__(self, pseudo=None, **parameters):
        self.template = self.read()
        defaults = {
            name: parameter["Default"]
            for name, parameter in self.template["Parameters"].items()
            if "Default" in parameter
        }
        self.parameters = PSEUDO_PARAMETERS | (pseudo or {}) | defaults | self.required | parameters
        self.resources = {
            name: self.resolve({key: value for key, value in resource.items() if key in ("Type", "Properties")})
            for name, resource in self.template["Resources"].items()
            if self.holds(resource.get("Condition"))
        }
        self.outputs = {
            name: self.resolve(output["Value"])
            for name, output in self.template["Outputs"].items()
            if self.holds(output.get("Condition"))
        }

    def broken_rules(self):
        """The errors with which CloudFormation would refuse the stack."""
        return [
            assertion["AssertDescription"]
            for rule in self.template.get("Rules", {}).values()
            if self.resolve(rule["RuleCondition"])
            for assertion in rule["Assertions"]
            if not self.resolve(assertion["Assert"])
        ]

    def properties(self, name):
        return self.resources[name]["Properties"]

    def holds(self, condition):
        return condition is None or self.resolve(self.template["Conditions"][condition])

    def resolve(self, node):
        if isinstance(node, list):
            return [value for value in map(self.resolve, node) if value is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            [(name, argument)] = node.items()
            if name in ("Ref", "Condition") or name.startswith("Fn::"):
                return getattr(self, "fn_" + name.removeprefix("Fn::").lower())(argument)
        resolved = {key: self.resolve(value) for key, value in node.items()}
        return {key: value for key, value in resolved.items() if value is not NO_VALUE}

    def fn_ref(self, name):
        if name == "AWS::NoValue":
            return NO_VALUE
        if name not in self.parameters:
            return f"<{name}>"
        value = self.parameters[name]
        is_list = self.template["Parameters"].get(name, {}).get("Type") == "CommaDelimitedList"
        return value.split(",") if is_list else value

    def fn_condition(self, name):
        return self.holds(name)

    def fn_getatt(self, argument):
        return f"<{argument if isinstance(argument, str) else '.'.join(argument)}>"

    def fn_sub(self, argument):
        text, variables = argument if isinstance(argument, list) else (argument, {})
        variables = self.resolve(variables)

        def value(match):
            name = match[1]
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in variables:
                return variables[name]
            return str(self.fn_getatt(name) if "." in name else self.fn_ref(name))

        return re.sub(r"\$\{([^}]+)\}", value, text)

    def fn_if(self, argument):
        condition, then, otherwise = argument
        return self.resolve(then if self.holds(condition) else otherwise)

    def fn_join(self, argument):
        separator, values = self.resolve(argument)
        return separator.join(values)

    def fn_split(self, argument):
        separator, text = self.resolve(argument)
        return text.split(separator)

    def fn_select(self, argument):
        index, values = self.resolve(argument)
        return values[int(index)]

    def fn_equals(self, argument):
        left, right = self.resolve(argument)
        return left == right

    def fn_not(self, argument):
        return not self.resolve(argument[0])

    def fn_or(self, argument):
        return any(self.resolve(argument))

    def fn_and(self, argument):
        return all(self.resolve(argument))

    def fn_findinmap(self, argument):
        table, first, second = self.resolve(argument)
        return self.template["Mappings"][table][first][second]


def as_list(value):
    return value if isinstance(value, list) else [value]


def grants(role, effect="Allow"):
    """What a role's own policies say with one effect: `action resource`, and each condition after that."""
    return {
        " ".join([action, resource, *map(str, statement.get("Condition", {}).values())])
        for policy in role.get("Policies", [])
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == effect
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    }
