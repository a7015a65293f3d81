"""A folder belongs to one run at a time: claimed at once, given back at the end."""

import errno
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from zopeft.errors import InputError
from zopeft.jobs import claim
from zopeft.jobs.claim import CLAIM, Claim
from zopeft.jobs.folder import Folder


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch):
    """File systems with and without locks of files."""
    if request.param == "no locks":

        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(claim.fcntl, "flock", flock)
    return request.param


def test_a_folder_is_one_runs_at_a_time(locks, tmp_path):
    place = tmp_path / "deep" / "out"
    with Claim(place):
        assert [path.name for path in place.iterdir()] == [CLAIM]
        told = f"in use by another run \\(process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(InputError, match=told):
            Claim(place)
        assert [path.name for path in place.iterdir()] == [CLAIM]
    # Nothing was put into it.
    assert list(tmp_path.iterdir()) == []
    with Claim(place):
        (place / "result").write_text("kept")
    assert [path.name for path in place.iterdir()] == ["result"]


def dead():
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                              capture_output=True, text=True, check=True).stdout)  # fmt: skip


@pytest.mark.parametrize("who", ["dead", "reborn", "elsewhere", "nobody"])
def test_claims_of_processes_that_were_killed(who, locks, tmp_path):
    host = "elsewhere" if who == "elsewhere" else socket.gethostname()
    pid = dead() if who == "dead" else os.getpid()
    holder = {"host": host, "pid": pid, "born": "1", "since": "yesterday"}
    file = tmp_path / CLAIM
    file.write_text("" if who == "nobody" else json.dumps(holder))
    # The system knows that none of these is held; without it, another host's may be.
    if locks == "no locks" and (who == "elsewhere" or (who == "reborn" and not claim._born(pid))):
        with pytest.raises(InputError, match="in use by another run"):
            Claim(tmp_path)
        return
    if locks == "no locks" and who == "nobody":
        with pytest.raises(InputError, match="in use by another run, got"):
            Claim(tmp_path)
        os.utime(file, (1, 1))
    with Claim(tmp_path):
        assert json.loads(file.read_text().splitlines()[-1])["pid"] == os.getpid()
        with pytest.raises(InputError, match="in use"):
            Claim(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_runs_without_out_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: Folder(None, "sst2"), range(24)))
    assert len({folder.path for folder in folders}) == 24
    for folder in folders:
        folder.close()
    assert list((tmp_path / "runs").iterdir()) == []


def test_of_many_runs_with_one_out_one_has_it(tmp_path):
    def taken(_):
        try:
            return Folder(tmp_path / "out", "x")
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(taken, range(24)))
    winners = [one for one in found if isinstance(one, Folder)]
    assert len(winners) == 1
    assert all("in use" in one for one in found if isinstance(one, str))
    winners[0].close()
    assert not (tmp_path / "out").exists()


def test_a_folder_made_by_one_that_did_not_get_it_is_taken_away(locks, tmp_path, monkeypatch):
    place, opened, others = tmp_path / "deep" / "out", claim._opened, []

    def late(path):
        if not others:
            others.append(None)
            others[0] = Claim(place)
        return opened(path)

    monkeypatch.setattr(claim, "_opened", late)
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        Claim(place)
    assert [path.name for path in place.iterdir()] == [CLAIM]
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        Claim(place)
    others[0].release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("tune", "--task", "sst2"),
        ("tune", "--task", "sst2", "--overwrite"),
        ("tune", "--resume"),
        ("meta-train", "--task", "copa"),
        ("eval", "--task", "sst2"),
        ("bench", "--task", "sst2"),
        ("bench", "--task", "sst2", "--resume"),
        ("demo", "--overwrite"),
        ("import-finetuner", "a.pth", "--model", "embedded"),
    ],
    ids=" ".join,
)
def test_every_command_leaves_a_folder_in_use_alone(words, zopeft_command, tiny_model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    words = [tiny_model if word == "embedded" else word for word in words]
    if {"--resume", "--overwrite"} & set(map(str, words)):
        recipe = {"task": {"name": "sst2"}, "model": {}, "peft": {}, "method": {}, "training": {}}
        (out / "run.json").write_text(json.dumps({"job": words[0], "recipe": recipe}))
    with Claim(out):
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        line = zopeft_command.refused(*words, "--out", out)
        assert "--out: the folder is in use by another run (process" in line
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_other_processes_of_a_distributed_run_share_its_folder(tmp_path, monkeypatch):
    with Folder(tmp_path / "out", "x") as first:
        first.begin({"job": "tune"})
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with Folder(tmp_path / "out", "x", overwrite=True) as second:
            second.begin({"job": "other"})
            assert second.path == first.path
        assert json.loads((first.path / "run.json").read_text())["job"] == "tune"
        with pytest.raises(InputError, match="several processes share a run"):
            Folder(None, "x")


def test_a_copy_of_a_recipe_never_replaces_a_file(zopeft_command, tmp_path, monkeypatch):
    from zopeft import staging

    copy = tmp_path / "own.yaml"
    real = staging.os.link

    def slow(place, path):
        # Another process makes the file at the last moment.
        copy.write_text("mine")
        real(place, path)

    monkeypatch.setattr(staging.os, "link", slow)
    assert "exists" in zopeft_command.refused("recipe", "copy", "embedded/tune", copy)
    assert copy.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_what_a_killed_process_was_writing_is_no_result(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".staged-0123456789ab.json").write_text('{"job": "tu')
    with Folder(tmp_path / "out", "x") as folder:
        folder.begin({"job": "tune"})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
