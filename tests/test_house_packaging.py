"""The wheel holds what the repository holds, under one name."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = {"cli": "zopeft.cli", "recipes": "zopeft.recipes"}


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders_with_code():
    found = set()
    for top in ("zopeft", *MAPPED):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            found.add(".".join((MAPPED.get(parts[0], parts[0]), *parts[1:])))
    return found


def test_the_list_of_packages_is_that_of_the_folders():
    listed = settings()["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed)) >= 12
    assert set(listed) == folders_with_code()


def test_no_folder_of_modules_lacks_an_init():
    for top in ("zopeft", *MAPPED):
        modules = [p for p in (ROOT / top).rglob("*.py") if "__pycache__" not in p.parts]
        assert modules
        assert [m for m in modules if not (m.parent / "__init__.py").exists()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    copy = tmp_path_factory.mktemp("source") / "zopeft"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(copy / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_the_wheel_has_one_name_and_all_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"zopeft", f"zopeft-{settings()['project']['version']}.dist-info"}
    assert "zopeft/cli/main.py" in names
    assert "zopeft/py.typed" in names
    recipes = {p.relative_to(ROOT / "recipes") for p in (ROOT / "recipes").rglob("*.yaml")}
    assert len(recipes) >= 10
    assert {f"zopeft/recipes/{p.as_posix()}" for p in recipes} <= set(names)
    embedded = ROOT / "zopeft" / "embedded"
    data = [*embedded.rglob("*.jsonl"), *(embedded / "model").glob("*.*")]
    assert data
    assert {p.relative_to(ROOT).as_posix() for p in data} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_imports_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import zopeft, zopeft.cli.main, zopeft.recipes\n"
        "from zopeft.recipe.load import shipped_recipes\n"
        "print(zopeft.__file__, zopeft.cli.main.__file__, len(shipped_recipes()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    package, command, recipes = run.stdout.split()
    assert package.startswith(str(tmp_path))
    assert command.startswith(str(tmp_path))
    assert int(recipes) >= 10


def test_editable_names_lead_to_the_repository():
    import zopeft.cli
    import zopeft.recipes

    assert Path(zopeft.cli.__file__).parent.resolve() == ROOT / "cli"
    assert Path(zopeft.recipes.__file__).parent.resolve() == ROOT / "recipes"


def test_pins_cover_the_direct_dependencies():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    project = settings()["project"]
    wanted = list(project["dependencies"])
    for name, extra in project["optional-dependencies"].items():
        # What only a GPU needs is a gigabyte, and is not installed here; Flower holds typer and
        # rich to older versions than the pinned ones.
        wanted += [] if name in ("cuda", "federated") else extra
    names = {w.partition(">")[0].partition("[")[0].strip().lower() for w in wanted} - {"zopeft"}
    assert len(names) >= 15
    assert names <= pinned
