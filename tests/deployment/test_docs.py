"""The pages that list what a template or a definition has: none is missing, and none is too many."""

import re

from conftest import ROOT
from template import source

ELASTIC_CI_STACK = ROOT / "pod-definitions" / "elastic-ci-stack"


def test_settings_are_the_templates_parameters_variables_and_defaults():
    template = source()
    variables = template["Resources"]["AgentScheduler"]["Properties"]["Environment"]["Variables"]
    variable = {value["Ref"]: f"`{name}`" for name, value in variables.items() if "Ref" in value}

    def default(parameter):
        if "Default" not in parameter:
            return "-"
        return f"`{parameter['Default']}`" if parameter["Default"] != "" else "empty"

    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) ?\| (.+?) \| .+ \|$", (ROOT / "docs" / "settings.md").read_text())
    assert rows == [
        (name, variable.get(name, ""), default(parameter)) for name, parameter in template["Parameters"].items()
    ]


def test_the_page_of_elastic_ci_stack_has_every_parameter_and_every_setting():
    page = (ELASTIC_CI_STACK / "README.md").read_text()
    parameters = set(source(ELASTIC_CI_STACK / "iam" / "template.yml")["Parameters"])
    assert {name for name in parameters if name not in page} == set()
    command = re.search(r"--parameter-overrides((?: \\\n|[^\n])*)", page)[1]
    assert set(re.findall(r"(\w+)=", command)) <= parameters

    definition = source(ELASTIC_CI_STACK / "pod-template.yaml")
    [agent] = definition["template"]["spec"]["containers"]
    # The last five have the same value everywhere.
    settings = [variable["name"] for variable in agent["env"]][:-5]
    assert [name for name in settings if f"`{name}`" not in page] == []


def test_every_definition_drops_the_capabilities_that_the_page_about_security_explains():
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "pod-definitions").rglob("*.yaml")]
    dropped = {file.name: re.findall(r"drop: (\[.+?\])", file.read_text()) for file in files}
    assert dropped.pop("restricted.yaml") == ["[ALL]"]
    explained = dropped["security.md"]
    dropping = {name for name, lists in dropped.items() if set(lists) == set(explained)}
    definitions = {"default.yaml", "fargate.yaml", "pod-template.yaml"}
    pages = {"fargate-and-ec2.md", "pod-definitions.md", "private-repositories.md", "security.md"}
    assert dropping == definitions | pages
