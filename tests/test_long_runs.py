"""Long runs: what grows with the steps and what does not, counted, not timed."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from test_journal_file import HEADER, record

from zopeft.jobs import snapshots
from zopeft.jobs.following import Course
from zopeft.jobs.metrics import Metrics
from zopeft.journal import Journal, frames
from zopeft.journal import journal as journals

ADAPTER = "adapter_model.safetensors"


@pytest.mark.parametrize("steps", [1_000, 20_000, 200_000, 1_000_000])
def test_what_is_made_again_is_a_thousand_steps_or_a_64th(steps):
    last, taken, most = 0, 0, 0
    for step in itertools.count(1):
        if snapshots.due(step, last):
            last, taken = step, taken + 1
        if step == steps:
            break
        most = max(most, step - last)
    assert most <= max(1000, steps // 64)
    # As many snapshots as a run of days can afford.
    assert taken <= 64 + 64 * max(0.0, torch.log(torch.tensor(steps / 64_000)).item()) + 1


def texts(records):
    return [repr(one) for one in records]


def test_reading_begins_near_the_step_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "ALONE", 50)
    path = tmp_path / "j.bin"
    with Journal.create(path, HEADER) as journal:
        for step in range(1000):
            journal.append(record(step))
        everything = texts(journal.records())
        read = []
        whole = frames._payload

        def counted(head, file, available):
            payload = whole(head, file, available)
            read.append(len(payload or b""))
            return payload

        monkeypatch.setattr(frames, "_payload", counted)
        assert texts(journal.records(980)) == everything[980:]
        assert len(read) == 50
        read.clear()
        assert texts(Journal.open(path).records(980)) == everything[980:]
        assert len(read) == 1001 + 50
        # A journal of before there were such records is read from its beginning.
        old = Journal.open(path)
        old._alone.clear()
        read.clear()
        assert texts(old.records(980)) == everything[980:]
        assert len(read) == 1000
    with Journal.open(path, writable=True) as again:
        again.truncate(430)
        assert again.next_step == 430
        for step in range(430, 470):
            again.append(record(step))
        assert texts(again.records(440)) == everything[440:470]
    assert [one.step for one in Journal.open(path).records()] == list(range(470))


def test_a_course_takes_nine_bytes_a_step():
    course = Course()
    for step in range(1, 2000):
        course[step] = float(step)
    course[5000] = 1.0
    assert (course.get(7), course.get(3000, None), course.get(9999, None)) == (7.0, None, None)
    assert course.get(3000) != course.get(3000)
    assert [step for step, _ in course.items()] == [*range(1, 2000), 5000]
    assert course._numbers.itemsize * len(course) + len(course._known) == 9 * 5001


def test_a_line_of_metrics_looks_at_no_earlier_ones(tmp_path):
    class Counting(list):
        looks = 0

        def __reversed__(self):
            for one in super().__reversed__():
                Counting.looks += 1
                yield one

    metrics = Metrics(tmp_path)
    metrics.entries = Counting()
    for step in range(10, 3000, 10):
        assert metrics.add(step, {"loss": 1.0}, 0.0)
        assert not metrics.add(step, {"loss": 2.0}, 0.0)
    assert Counting.looks < 1500


def test_a_run_takes_snapshots_by_itself_and_resumes_from_the_last(
    zopeft_command, tiny_model, tiny_data, tmp_path, monkeypatch
):
    """Files open and steps made again stay as few, however many steps there are."""
    from zopeft.optim.zeroth_order import ZerothOrder

    monkeypatch.setattr(snapshots, "FIRST", 6)
    words = ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--batch-size", 2)
    words += ("--lr", "1e-3", "training.eval_before=false")
    files = []
    real = snapshots.Snapshots.on_step_end

    def watched(self, args, state, control, **kwargs):
        files.append(len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0)
        real(self, args, state, control, **kwargs)

    monkeypatch.setattr(snapshots.Snapshots, "on_step_end", watched)
    zopeft_command.json(*words, "--steps", 20, "--out", tmp_path / "whole")
    assert len(set(files[2:])) == 1
    # One is kept, none is made at the end.
    assert [p.name for p in (tmp_path / "whole").glob("checkpoint-*")] == ["checkpoint-18"]

    out = tmp_path / "out"
    zopeft_command.json(*words, "--steps", 16, "--out", out)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-12"]
    recalled = []
    recall = ZerothOrder.recall

    def counted(self, one):
        recalled.append(one.step)
        return recall(self, one)

    monkeypatch.setattr(ZerothOrder, "recall", counted)
    zopeft_command.json("tune", "--resume", "--steps", 20, "--out", out)
    assert recalled == [12, 13, 14, 15]
    # Counted from the snapshot that the run went on from.
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-18"]
    assert (out / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_a_snapshot_that_the_disk_has_no_room_for_is_left_out(
    zopeft_command, tiny_model, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(snapshots, "FIRST", 2)
    usage = snapshots.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    words = ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--steps", 7)
    out = tmp_path / "out"
    code, _, err = zopeft_command(*words, "--lr", "1e-3", "--batch-size", 2, "--out", out)
    assert code == 0
    assert err.count("no room on the disk for a snapshot: the run can be resumed from") == 1
    assert not list(out.glob("checkpoint-*"))
