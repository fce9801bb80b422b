"""`sam build` from a clean clone gives a function that is small, starts quickly, and runs on Amazon Linux 2023."""

import json
import re
import zipfile

import pytest

from conftest import ROOT, TARGET, run

# docs/performance.md; a bigger zip makes cold starts longer.
LARGEST_ZIP = 5_000_000

# What Amazon Linux 2023 has.
GLIBC = (2, 34)
LIBRARIES = {
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
}


@pytest.fixture(scope="module")
def bootstrap(clone):
    return clone / ".aws-sam/build/AgentScheduler/bootstrap"


def test_the_bootstrap_is_all_that_is_deployed(bootstrap):
    assert [path.name for path in bootstrap.parent.iterdir()] == ["bootstrap"]
    assert bootstrap.stat().st_mode & 0o111, "Lambda cannot run it"


def test_the_zip_is_within_the_limit(bootstrap, tmp_path):
    with zipfile.ZipFile(tmp_path / "function.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(bootstrap, "bootstrap")
    assert (tmp_path / "function.zip").stat().st_size <= LARGEST_ZIP


def test_amazon_linux_2023_has_the_libraries_and_symbols_that_it_needs(bootstrap):
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", "--wide", bootstrap))
    assert "libc.so.6" in needed
    assert set(needed) <= LIBRARIES
    versions = re.findall(r"Name: GLIBC_([0-9.]+)", run("readelf", "--version-info", "--wide", bootstrap))
    assert max(tuple(map(int, version.split("."))) for version in versions) <= GLIBC


def test_a_panic_unwinds_and_fails_one_event_only(bootstrap):
    # The class of Rust's exceptions, which is in a program only if its panics throw one.
    assert b"MOZ\0RUST" in bootstrap.read_bytes()


def test_cargo_config_is_honoured(bootstrap):
    """Without the setting in .cargo/config.toml, both would take some nine times the instructions."""
    start, start_of_plain_cargo = (
        int(run(TARGET / "debug/bench", "count", "--function", binary, "--event", ROOT / "events/job-scheduled.json"))
        for binary in (bootstrap, TARGET / "release/agent-scheduler")
    )
    assert start < 1.3 * start_of_plain_cargo
    figures = json.loads((ROOT / "tests/bench/instructions.json").read_text())
    # Whatever the compiler.
    assert start < 2 * figures["start-to-first-job"]
