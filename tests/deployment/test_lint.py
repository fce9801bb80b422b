"""What the scripts of tests/lint find in a repository of a few files, and what they leave alone."""

import subprocess

import pytest

from conftest import ROOT, run


@pytest.fixture
def lint(tmp_path):
    """Runs a script in a repository of these files, and gives what it found."""
    run("git", "init", "--quiet", tmp_path)

    def found(script, files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        run("git", "add", ".", cwd=tmp_path)
        done = subprocess.run(
            [ROOT / "tests" / "lint" / script], check=False, cwd=tmp_path, capture_output=True, text=True
        )
        *lines, last = done.stderr.splitlines() or [None]
        assert done.returncode == (1 if lines else 0)
        assert (last is None) == (not lines)
        return [line.split(": ")[0] for line in lines]

    return found


def test_a_link_must_lead_to_a_file_and_a_heading(lint):
    files = {
        "a.md": "[b](docs/b.md#the-log)\n[c](docs/c.md)\n```\n[d](d.md)\n```\n`[e](e.md)` [f](https://f.example/#f)\n",
        "docs/b.md": "# `The` log\n## The log\n[a](../a.md), [again](#the-log-1), [not](#the-log-2)\n![p](../p.svg) [d](../docs)\n",
    }
    assert lint("links", files) == ["a.md:2", "docs/b.md:3", "docs/b.md:4"]


@pytest.mark.parametrize(
    "text", ["is told.", "as_told()", "struct AsTold;", "TOLD_ONCE", "Who tells?", "By name", "there is\n// none"]
)
def test_a_word_that_we_do_not_use_is_found(lint, text):
    assert lint("words", {"a.rs": f"\n// {text}\n"}) == ["a.rs:2"]


@pytest.mark.parametrize("text", ["`told`", "recommend, amendment", "value.is_none()", "value is None", "untold"])
def test_words_that_contain_or_quote_it_are_not(lint, text):
    assert lint("words", {"a.rs": text, "a.md": "```\ntold\n```\n"}) == []


def test_the_clock_and_chance_have_one_place_outside_of_tests(lint):
    tested = "#[cfg(test)]\nmod tests {\n    fn now() {\n        Instant::now();\n    }\n}\n"
    files = {
        "src/clock.rs": "Instant::now();\n",
        "src/a.rs": f"// SystemTime::now\n{tested}fn id() {{\n    Uuid::new_v4();\n}}\n",
        "src/b/mod.rs": "#[cfg(test)]\nuse std::rand::random;\nuse tokio::time::Instant;\nlet start = Instant::now();\n",
        "src/b/tests.rs": "SystemTime::now();\n",
    }
    assert lint("clock", files) == ["src/a.rs:9", "src/b/mod.rs:4"]
