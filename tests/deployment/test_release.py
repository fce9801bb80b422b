"""The version: one everywhere, and written by `scripts/release`."""

import json
import re
import time

import pytest

from conftest import ROOT, keep_in_step, run
from template import Stack


@pytest.fixture
def clone(tmp_path):
    keep_in_step(tmp_path)
    run("git", "init", "--quiet", cwd=tmp_path)
    run("git", "config", "user.name", "Test", cwd=tmp_path)
    run("git", "config", "user.email", "test@example.com", cwd=tmp_path)
    commit(tmp_path)
    return tmp_path


def commit(clone):
    run("git", "add", "--all", cwd=clone)
    run("git", "commit", "--quiet", "--message", "Test", cwd=clone)


def versions(folder):
    """The version in each place, by how it is read there; --locked fails if Cargo.lock has another."""
    metadata = json.loads(
        run("cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version", "1", cwd=folder)
    )
    [crate] = [package["version"] for package in metadata["packages"] if package["name"] == "agent-scheduler"]
    [output] = re.findall(r"Version of agent-scheduler\n    Value: (.*)\n", (folder / "template.yml").read_text())
    [tag] = re.findall(
        r'^tags = "agent-scheduler:version=(.*)"$', (folder / "samconfig.toml").read_text(), re.MULTILINE
    )
    return {crate, output, tag}


def test_the_version_is_the_same_everywhere():
    assert versions(ROOT) == {Stack().outputs["Version"]}


def test_a_release_is_one_commit_and_one_tag(clone):
    log = (clone / "CHANGELOG.md").read_text().replace("## Unreleased", "## 0.1.0 (2026-01-15)")
    (clone / "CHANGELOG.md").write_text(log.replace("\n## ", "\n## Unreleased\n\n- A change.\n\n## ", 1))
    commit(clone)
    run("scripts/release", "7.8.9", cwd=clone)
    assert versions(clone) == {"7.8.9"}
    heading = f"## 7.8.9 ({time.strftime('%Y-%m-%d', time.gmtime())})\n\n- A change.\n"
    assert heading in (clone / "CHANGELOG.md").read_text()
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert run("git", "rev-list", "--count", "HEAD", cwd=clone).strip() == "3"
    assert run("git", "describe", cwd=clone).strip() == "v7.8.9"


@pytest.mark.parametrize(
    "version, spoil, said",
    [
        ("1.2", None, "such as 1.2.3"),
        ("7.8.9", "new file", "the tree has changes"),
        ("7.8.9", "tag", "a tag v7.8.9 already"),
    ],
)
def test_a_release_that_cannot_be_right_changes_nothing(clone, version, spoil, said):
    if spoil == "new file":
        (clone / "new").touch()
    if spoil == "tag":
        run("git", "tag", "v7.8.9", cwd=clone)
    assert said in run("scripts/release", version, cwd=clone, expect=1)
    assert versions(clone) == versions(ROOT)
