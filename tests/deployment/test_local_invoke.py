"""`sam local invoke`, in Docker: with the lab, and with nothing that answers."""

import ipaddress
import json
import os
import shutil
import subprocess

import pytest
import yaml

from conftest import ROOT, Lab, run


@pytest.fixture(scope="module")
def docker():
    try:
        run("docker", "version")
    except (AssertionError, FileNotFoundError):
        pytest.skip("NO DOCKER ENGINE, SO `sam local invoke` IS NOT TESTED. `make docker-engine` sets one up.")


@pytest.fixture(scope="module")
def bridge(docker):
    """The address of this machine that a container reaches."""
    network = json.loads(run("docker", "network", "inspect", "bridge", "--format", "{{json (index .IPAM.Config 0)}}"))
    # Not every version shows the address that it uses by default: the first.
    return network.get("Gateway") or str(ipaddress.ip_network(network["Subnet"])[1])


@pytest.fixture
def built(docker, clone, tmp_path):
    """The project as `sam build` left it, in a folder that a test may change."""
    for folder in [".aws-sam", "events"]:
        shutil.copytree(clone / folder, tmp_path / folder)
    shutil.copy(clone / "samconfig.toml", tmp_path)
    return tmp_path


def invoke(built, *options, variables):
    """What the function answered, and what it logged."""
    image = run(ROOT / "tests/deployment/base-image").strip()
    done = subprocess.run(
        ["sam", "local", "invoke", "--skip-pull-image", "--invoke-image", image, *options],
        cwd=built,
        env=os.environ | variables,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.stderr


def direct_to(lab, built):
    """Declares AWS's address in the template: sam passes only the template's variables to a function, and few of its own."""
    template = built / ".aws-sam/build/template.yaml"
    document = yaml.safe_load(template.read_text())
    variables = document["Resources"]["AgentScheduler"]["Properties"]["Environment"]["Variables"]
    variables["AWS_ENDPOINT_URL"] = lab.variables["AWS_ENDPOINT_URL"]
    template.write_text(yaml.safe_dump(document))


def test_an_event_becomes_a_job(built, bridge):
    with Lab(bridge) as lab:
        direct_to(lab, built)
        answer, _ = invoke(built, "-e", "events/job-scheduled.json", variables=lab.variables)
    assert answer["outcome"] == "created"
    assert [job["metadata"]["name"] for job in lab.jobs] == [answer["job"]]


def test_an_event_of_another_queue_is_ignored(built, bridge):
    with Lab(bridge) as lab:
        direct_to(lab, built)
        answer, _ = invoke(built, "-e", "events/job-other-queue.json", variables=lab.variables)
    assert answer["outcome"] == "ignored"
    assert lab.jobs == []


def test_doctor_reads_the_answer(built, bridge):
    with Lab(bridge) as lab:
        direct_to(lab, built)
        answer, _ = invoke(built, "-e", "events/doctor.json", variables=lab.variables)
    shown = subprocess.run(
        [ROOT / "doctor", "-"], input=json.dumps(answer), text=True, capture_output=True, check=False
    )
    assert shown.returncode == (0 if answer["ok"] else 1)
    lines = [line for line in shown.stdout.splitlines() if not line.startswith(" ")]
    assert len(lines) == len(answer["checks"])
    assert "✓ identity " in shown.stdout


def unreachable(service):
    """Directs a service of AWS to the loopback of the container, where nothing listens."""
    return ["--add-host", f"{service}.us-east-1.amazonaws.com:127.0.0.1"]


# sam asks AWS for the account, and continues without an answer.
NO_ACCOUNT = {"AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}


def test_without_aws_the_error_says_what_cannot_be_reached(built):
    answer, _ = invoke(built, *unreachable("ssm"), *unreachable("eks"), variables=NO_ACCOUNT)
    assert answer["errorType"] == "ClusterUnavailable"
    for part in ["EKS", "example-cluster", "Connection refused"]:
        assert part in answer["errorMessage"]


def test_without_ssm_the_error_names_the_parameter(built, bridge):
    with Lab(bridge) as lab:
        # Endpoint and CA among them, so that EKS is not asked.
        (built / "env.json").write_text(json.dumps({"Parameters": lab.variables}))
        # With the lab's credentials, as the cluster comes before the token.
        answer, _ = invoke(built, *unreachable("ssm"), "--env-vars", "env.json", variables=lab.variables | NO_ACCOUNT)
    assert answer["errorType"] == "AgentTokenUnavailable"
    for part in ["SSM parameter /buildkite/agent-token in us-east-1", "Connection refused"]:
        assert part in answer["errorMessage"]
    assert lab.jobs == []
