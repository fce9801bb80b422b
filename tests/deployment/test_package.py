"""What `make package` writes. test_deploy.py deploys from it; the programs in it are those of test_build.py."""

import stat
import zipfile

from conftest import ROOT, pack, run
from template import Stack, source


def test_the_same_programs_give_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = map(pack, folders)
    assert first.name == second.name == f"agent-scheduler-{Stack().outputs['Version']}"
    # All files, by SHA256SUMS itself; diff compares the modes of none, so the zip's is looked at here.
    assert run("diff", "--recursive", first, second) == ""
    sums = (first / "SHA256SUMS").read_text()
    assert len(sums.splitlines()) == sum(path.is_file() for path in first.rglob("*")) - 1
    run("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=first)
    with zipfile.ZipFile(first / "agent-scheduler-arm64.zip") as archive:
        [entry] = archive.infolist()
        assert archive.read(entry) == b"arm64"
    assert (entry.filename, entry.date_time) == ("bootstrap", (1980, 1, 1, 0, 0, 0))
    assert stat.filemode(entry.external_attr >> 16) == "-rwxr-xr-x"


def test_it_holds_all_that_a_deploy_without_a_compiler_needs(tmp_path):
    folder = pack(tmp_path)
    for name in ("buildkite-role.yaml", "connect", "doctor", "events/doctor.json", "samconfig.toml", "LICENSE"):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    for name in ("connect", "doctor"):
        assert (folder / name).stat().st_mode & 0o111
    assert run("diff", "--recursive", ROOT / "pod-definitions", folder / "pod-definitions") == ""
    for architecture in ("x86_64", "arm64"):
        template, original = source(folder / f"template-{architecture}.yml"), source()
        properties = template["Resources"]["AgentScheduler"]["Properties"]
        assert (folder / properties["CodeUri"]).is_file()
        # That, the architecture, and how it is built are all that differ.
        original["Resources"]["AgentScheduler"]["Properties"] |= {
            "CodeUri": f"agent-scheduler-{architecture}.zip",
            "Architectures": [architecture],
        }
        del original["Resources"]["AgentScheduler"]["Metadata"]
        assert template == original


def test_the_notices_have_the_licenses_of_what_is_compiled_in_and_of_nothing_else(tmp_path):
    notices = (pack(tmp_path) / "THIRD-PARTY-NOTICES.txt").read_text()
    # A crate, the C library in another, and one for builds and one for tests.
    for name, there in {"tokio": True, "aws-lc-sys": True, "cc": False, "proptest": False}.items():
        assert (f"\n{name} " in notices) == there, name
    assert "Permission is hereby granted, free of charge" in notices
    assert "OpenSSL" in notices, "aws-lc's own"
