"""`cargo lambda watch` and `cargo lambda invoke`: the function without Docker, against the lab."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from conftest import ROOT, Lab, run
from ports import free_port, listens


@contextmanager
def watch(lab):
    """`cargo lambda watch` as long as the block lasts; gives the options that lead `cargo lambda invoke` to it."""
    port = free_port()
    place = ["--invoke-address", "127.0.0.1", "--invoke-port", str(port)]
    process = subprocess.Popen(
        ["cargo", "lambda", "watch", "--ignore-changes", *place],
        cwd=ROOT,
        env=os.environ | lab.variables,
        start_new_session=True,
        stdout=sys.stderr,
    )
    try:
        while not listens(port):
            assert process.poll() is None, "cargo lambda watch ended"
            time.sleep(0.1)
        yield place
    finally:
        # The function is a child of it, and its like.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def test_events_are_answered():
    with Lab() as lab, watch(lab) as place:
        created, ignored = (
            json.loads(run("cargo", "lambda", "invoke", *place, "--data-file", event, "agent-scheduler"))
            for event in ("events/job-scheduled.json", "events/job-other-queue.json")
        )
    assert created["outcome"] == "created"
    assert [job["metadata"]["name"] for job in lab.jobs] == [created["job"]]
    assert ignored["outcome"] == "ignored"
