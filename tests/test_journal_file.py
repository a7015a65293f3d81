"""The journal as a file: round trips, torn ends, damage, other runs."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace

import numpy as np
import pytest

from zopeft.errors import InputError
from zopeft.journal import Journal, JournalHeader
from zopeft.journal.frames import MAGIC, Frame, scan
from zopeft.optim.record import StepRecord

HEADER = JournalHeader("MeZO", "gaussian", 7, (("a", (2, 3)), ("b", (4,))), settings={"batch": 4})


def record(step, scales=None, memory=None, lr=(0.1,), losses=(1.5, 1.25), skipped=False):
    return StepRecord(
        step=step,
        seed=2**64 - 1 - step,
        losses=losses,
        projected_grads=((losses[0] - losses[1]) / 2e-3,),
        lr=lr,
        eps=1e-3,
        decay=0.01,
        scales=None if scales is None else np.asarray(scales, dtype=np.float32),
        memory=None if memory is None else np.asarray(memory, dtype=np.float32),
        skipped=skipped,
    )


def same(a, b):
    def bits(x):
        return None if x is None else (np.asarray(x).shape, np.asarray(x).tobytes())

    return all(
        bits(getattr(a, name)) == bits(getattr(b, name)) for name in StepRecord.__dataclass_fields__
    )


def written(path, records, **options):
    with Journal.create(path, HEADER, **options) as journal:
        for each in records:
            journal.append(each)
    return path


def offsets(path):
    return [frame.offset for frame in scan(path) if isinstance(frame, Frame)]


def test_records_come_back_bit_for_bit(tmp_path):
    records = [
        record(0),
        record(1, scales=[1.0, 0.5], memory=[[1, 2], [3, 4]]),
        record(2, scales=[1.0, 0.5], memory=[[1, 2], [3, 5]]),
        record(3, lr=(0.1, 0.2), losses=(math.nan, math.inf), skipped=True),
        record(4, lr=(0.1, 0.2), scales=[-0.0, math.nan]),
        record(5, lr=(1 / 3,), losses=(1 / 3, 1e-300)),
    ]
    path = written(tmp_path / "j.bin", records)
    journal = Journal.open(path)
    assert len(journal) == journal.next_step == 6
    found = list(journal.records())
    assert len(found) == 6
    assert all(same(a, b) for a, b in zip(found, records, strict=True))
    assert [r.step for r in journal.records(4)] == [4, 5]
    assert journal.header == HEADER


def test_arrays_that_stay_are_not_repeated(tmp_path):
    scales = np.random.default_rng(0).random(1000)
    once = written(tmp_path / "once.bin", [record(0, scales)])
    often = written(tmp_path / "often.bin", [record(s, scales) for s in range(11)])
    assert often.stat().st_size - once.stat().st_size < 10 * 120


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 9, 40, 68])
def test_a_torn_last_record_is_dropped_and_logged(tmp_path, caplog, cut):
    path = written(tmp_path / "j.bin", [record(s) for s in range(3)])
    size = path.stat().st_size
    last = offsets(path)[-1]
    assert size - last == 69
    os.truncate(path, last + cut)
    with caplog.at_level(logging.WARNING):
        assert len(Journal.open(path)) == 2
        assert path.stat().st_size == last + cut
        with Journal.open(path, writable=True) as journal:
            assert path.stat().st_size == last
            journal.append(record(2))
    assert f"{cut} bytes at byte {last}" in caplog.text
    assert len(Journal.open(path)) == 3
    assert path.stat().st_size == size


def test_zeros_after_a_power_cut_are_a_torn_end(tmp_path):
    path = written(tmp_path / "j.bin", [record(0), record(1)])
    with open(path, "ab") as file:
        file.write(bytes(64))
    with Journal.open(path, writable=True) as journal:
        assert len(journal) == 2


@pytest.mark.parametrize("where", [0, 1, 3, 4, 8, 20, 60])
def test_damage_in_the_middle_is_refused_with_its_offset(tmp_path, where):
    path = written(tmp_path / "j.bin", [record(s) for s in range(4)])
    hurt = offsets(path)[2]
    data = bytearray(path.read_bytes())
    data[hurt + where] ^= 0x55
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=rf"damaged at byte {hurt}\b"):
        Journal.open(path, writable=True)
    assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 something else", "not a journal"),
        (b"", "breaks off"),
        (MAGIC, "breaks off"),
        (MAGIC[:3], "breaks off"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "j.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Journal.open(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_of_a_later_format_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such journal"):
        Journal.open(tmp_path / "none.bin")
    path = tmp_path / "later.bin"
    Journal.create(path, replace(HEADER, format_version=99)).close()
    with pytest.raises(
        InputError,
        match="is a journal of format 99, where this version knows those up to 1; install zopeft ",
    ):
        Journal.open(path)


def test_truncated_steps_are_written_anew(tmp_path):
    path = written(tmp_path / "j.bin", [record(s, scales=[1, 2]) for s in range(5)])
    with Journal.open(path, writable=True) as journal:
        journal.truncate(3)
        assert journal.next_step == 3
        journal.append(record(3, scales=[1, 2], losses=(9.0, 8.0)))
        journal.truncate(10)
    found = list(Journal.open(path).records())
    assert [r.step for r in found] == [0, 1, 2, 3]
    assert found[3].losses == (9.0, 8.0)
    assert found[3].scales.tolist() == [1, 2]


def test_steps_have_no_gaps(tmp_path):
    path = tmp_path / "j.bin"
    with Journal.create(path, HEADER) as journal:
        journal.append(record(5))
        with pytest.raises(ValueError, match="step 6 is due"):
            journal.append(record(7))
        journal.append(record(6))
    journal = Journal.open(path)
    assert (journal.first_step, journal.next_step) == (5, 7)
    with pytest.raises(ValueError, match="not open for writing"):
        journal.append(record(7))


def test_an_old_journal_is_not_overwritten_unasked(tmp_path):
    path = written(tmp_path / "j.bin", [record(0)])
    with pytest.raises(InputError, match="is there already"):
        Journal.create(path, HEADER)
    Journal.create(path, HEADER, overwrite=True).close()
    assert len(Journal.open(path)) == 0


def test_each_append_is_flushed_and_the_disk_waited_for_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "j.bin"
    journal = Journal.create(path, HEADER, sync_steps=3)
    waits = []
    monkeypatch.setattr(os, "fsync", waits.append)
    for step in range(7):
        journal.append(record(step))
        assert len(Journal.open(path)) == step + 1
    assert len(waits) == 2
    journal.close()
    assert len(waits) == 3
    journal.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ZOFineTuner"}, "method 'ZOFineTuner' instead of 'MeZO'"),
        ({"seed": 8}, "seed 8 instead of 7"),
        ({"noise": "binomial"}, "noise 'binomial' instead of 'gaussian'"),
        ({"blocks": (("a", (2, 3)),)}, "1 blocks instead of 2"),
        ({"blocks": (("a", (2, 3)), ("c", (4,)))}, r"block c \[4\] instead of b \[4\]"),
        ({"settings": {"batch": 8, "new": 1}}, "batch 8 instead of 4"),
    ],
)
def test_a_journal_of_another_run_is_refused(change, message):
    with pytest.raises(InputError, match=message) as caught:
        HEADER.check(replace(HEADER, **change), "j.bin")
    assert "\n" not in str(caught.value)


def test_a_run_fits_its_own_journal():
    HEADER.check(replace(HEADER, run="other", versions={}, settings={}), "j.bin")
