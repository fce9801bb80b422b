"""What the tests of the deployment share: the project's folder, and sam as a user runs it, without the network."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from account import Account

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def pytest_configure():
    """No real account, and no telemetry; before the tests are collected, since some read the template for their cases."""
    # Under make, a make of the tests would print its directories.
    for name in [name for name in os.environ if name.startswith("AWS_") or name in ("MAKEFLAGS", "MAKELEVEL")]:
        del os.environ[name]
    os.environ.update(
        AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        SAM_CLI_TELEMETRY="0",
        CARGO_TARGET_DIR=str(TARGET),
    )


def run(*command, expect=0, **options):
    """Runs a command in the project's folder; fails with its output if it does not end with the expected status."""
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    done = subprocess.run([str(part) for part in command], check=False, **options)
    assert done.returncode == expect, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def account():
    """An AWS account with Buildkite's event bus and nothing else, in moto (moto_sam.py)."""
    command = [sys.executable, Path(__file__).with_name("moto_sam.py")]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as moto:
        yield Account(moto.stdout.readline().strip())
        moto.stdin.close()


@pytest.fixture(scope="session")
def clone():
    """A clean clone of the project in which `sam build` has run."""
    folder = TARGET / "deployment" / "clone"
    keep_in_step(folder)
    run("sam", "build", cwd=folder)
    return folder


def keep_in_step(folder):
    """Makes a folder what a fresh clone would be if the tree were committed.

    Files that did not change are not written, so that cargo does not link again for minutes.
    """
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    wanted = {folder / name: ROOT / name for name in listed if name and (ROOT / name).is_file()}
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, source in wanted.items():
        if not (path.exists() and filecmp.cmp(source, path, shallow=False)):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)


def pack(folder):
    """The package that `make package` writes, in a folder; its programs are the names of their architectures."""
    binaries = {architecture: folder / architecture for architecture in ("x86_64", "arm64")}
    for architecture, binary in binaries.items():
        binary.write_text(architecture)
    given = [f"{architecture}={binary}" for architecture, binary in binaries.items()]
    return Path(run("scripts/package", "--into", folder, *given, stderr=subprocess.DEVNULL).strip())


class Lab:
    """`lab serve`: stands in for AWS and Kubernetes while a block lasts; `jobs` are those that it then has.

    `variables` direct a function to it. The jobs of the sample `events` wait at Buildkite.
    """

    def __init__(self, host="127.0.0.1", events=()):
        self.host = host
        self.events = [f"--event={ROOT / 'events' / event}.json" for event in events]
        self.jobs = None

    def __enter__(self):
        command = [TARGET / "debug" / "lab", "serve", "--host", self.host, *self.events]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.variables = json.loads(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        # It ends when its standard input does.
        jobs, _ = self.process.communicate()
        self.jobs = json.loads(jobs)
