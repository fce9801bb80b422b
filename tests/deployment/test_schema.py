"""docs/pod-definition.schema.json, as an editor uses it."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/pod-definition.schema.json").read_text())


def problems(path):
    return [error.message for error in Draft7Validator(SCHEMA).iter_errors(yaml.safe_load(path.read_text()))]


def test_the_schema_is_one():
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted(ROOT.glob("pod-definitions/*.yaml")), ids=lambda path: path.name)
def test_a_definition_is_valid(path):
    assert problems(path) == []


def test_the_definition_of_a_folder_is_valid():
    assert problems(ROOT / "pod-definitions/elastic-ci-stack/pod-template.yaml") == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("cli/tests/wrong/*.yaml")), ids=lambda path: path.name)
def test_a_mistake_is_found(path):
    assert problems(path)
