"""The pages' code: Python blocks run as they stand, commands are ones that zopeft takes."""

import importlib
import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import pytest

from zopeft.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
JOBS = (
    *("tune", "evaluate", "meta_train", "estimate", "import_finetuner", "demo", "merge", "push"),
    "show",
    "export",
    "harness",
    "doctor",
    "bench.bench",
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [code for kind, code in FENCE.findall(page.read_text()) if kind == language]


def commands():
    for page in PAGES:
        for code in blocks(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(" > ")[0], comments=True)
                if words[:1] == ["zopeft"] and not any(word.isupper() for word in words):
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words[1:])[:60]}")


def pages_with_python():
    return [page for page in PAGES if blocks(page, "python")]


class ReachedError(Exception):
    """The command line has taken the command, and its job would begin."""


def test_there_is_code():
    assert len(list(commands())) >= 30
    assert {page.name for page in pages_with_python()} >= {"README.md", "python.md"}


def test_the_readme_is_short():
    (code,) = blocks(PAGES[0], "python")
    assert len([line for line in code.splitlines() if line]) == 12
    assert len(PAGES[0].read_text().split()) < 1000


@pytest.mark.parametrize("page", pages_with_python(), ids=lambda page: page.stem)
def test_python_runs_as_it_stands(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    left = runpy.run_path(str(script))
    assert left["score" if "score" in left else "loss"] > 0
    assert left["blocks" if "blocks" in left else "optimizer"]


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_taken(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reached = []
    for job in JOBS:
        module = importlib.import_module(f"zopeft.jobs.{job}")

        def begin(*args, job=job, **kwargs):
            reached.append(job)
            raise ReachedError

        monkeypatch.setattr(module, job.rpartition(".")[2], begin)
    if words[0] in ("list", "recipe") or words[:2] == ["data", "schema"]:
        assert main(words) == 0, capsys.readouterr().err
        return
    if words[0] in ("blocks", "finetuner", "chat"):  # They read models and folders at once.
        words = [*words, "--no-such-flag"]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "--no-such-flag" in said and said.count("No such option") == 1
        return
    main(words)
    said = capsys.readouterr().err
    if (
        "run `pip install 'zopeft[metrics]'`" in said
        and importlib.util.find_spec("sklearn") is None
    ):
        pytest.skip("needs scikit-learn")
    assert reached, said


def test_methods_of_the_readme_are_known():
    from zopeft.methods import METHODS

    table = (ROOT / "README.md").read_text().partition("## Methods")[2].partition("```bash")[0]
    named = {name for row in table.splitlines()[5:] for name in re.findall(r"`(\w+)`", row)}
    assert len(named) >= 30
    assert named <= set(METHODS), named - set(METHODS)


def test_links_lead_somewhere():
    missing = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", FENCE.sub("", page.read_text())):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing
