"""Journals, checkpoints and fine-tuners of earlier versions, which lie in `golden/earlier`."""

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import zopeft
from zopeft.errors import InputError
from zopeft.journal import Journal, JournalHeader, frames, rebuild
from zopeft.training import newest_checkpoint
from zopeft.training.checkpoints import SEAL

FOLDER = Path(__file__).parent / "golden" / "earlier"


def _made():
    found = importlib.util.spec_from_file_location("earlier", FOLDER / "make.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


earlier = _made()


def unpacked(name, out):
    """Unpacks one, and returns what its maker told of it."""
    with zipfile.ZipFile(FOLDER / f"{name}.zip") as file:
        file.extractall(out)
    return json.loads((out / "told.json").read_text())


def test_every_one_is_there_and_small():
    names = {path.stem for path in FOLDER.glob("*.zip")}
    assert names == {*earlier.RUNS, *earlier.TUNERS}
    assert max(path.stat().st_size for path in FOLDER.glob("*.zip")) < 24_000


@pytest.mark.parametrize("name", earlier.RUNS)
def test_a_journal_of_an_earlier_version_makes_the_weights_of_then(name, tmp_path):
    told = unpacked(name, tmp_path)
    options = earlier.RUNS[name][1]
    journal = Journal.open(tmp_path / "journal.bin")
    assert [record.step for record in journal.records()] == list(range(earlier.STEPS))
    model = earlier.model_of(options.get("space", "adapter"))
    start = earlier.digest(model)
    trainer = earlier.trainer_of(model, str(tmp_path / "other"), options)
    method = trainer.create_optimizer()
    if method.auto:
        method.begin_rate(journal.header.rate, journal.header.learning_rate)
    assert rebuild(journal, trainer.method) == earlier.STEPS
    assert earlier.digest(model) == told["digest"] != start


@pytest.mark.parametrize("name", earlier.RUNS)
def test_a_run_of_an_earlier_version_goes_on(name, tmp_path):
    """From its checkpoint, through the rest of its journal without a forward pass, and further."""
    told = unpacked(name, tmp_path)
    options = earlier.RUNS[name][1]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    model = earlier.model_of(options.get("space", "adapter"))
    digests = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            digests[state.global_step] = earlier.digest(model)

    trainer = earlier.trainer_of(model, str(tmp_path), options, max_steps=earlier.STEPS + 1)
    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=True)
    assert list(digests) == [5, 6, 7]
    assert digests[6] == told["digest"] != digests[7]
    assert len(Journal.open(tmp_path / "journal.bin")) == earlier.STEPS + 1


@pytest.mark.parametrize("name", earlier.TUNERS)
def test_a_fine_tuner_of_an_earlier_version_gives_the_scales_of_then(name, tmp_path):
    told = unpacked(name, tmp_path)
    version = 1 + list(earlier.TUNERS).index(name)
    config = json.loads((tmp_path / "finetuner_config.json").read_text())
    assert config["format_version"] == version
    found = zopeft.FineTuner.from_pretrained(tmp_path)
    assert len(found.bases) == (0 if version == 1 else 2)
    step = earlier.step_of(found, earlier.model_of("full").float())
    for what, values in step.items():
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(told[what]), rtol=1e-4, atol=1e-7
        )
    found.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "finetuner_config.json").read_text())
    assert again["format_version"] == 3


LATER = {"format_version": 9, "versions": {"zopeft": "7.1.0"}}
SAID = ", where this version knows those up to {}; install zopeft 7.1.0 or later"


def test_later_formats_are_refused_with_the_version_that_is_needed(tmp_path):
    unpacked("first", tmp_path)
    header, *steps = [frame.payload for frame in frames.scan(tmp_path / "journal.bin")]
    later = json.dumps(json.loads(header) | LATER | {"unheard": 1}).encode()
    content = frames.MAGIC + b"".join(frames.pack(one) for one in (later, *steps))
    (tmp_path / "later.bin").write_bytes(content)
    with pytest.raises(InputError, match="is a journal of format 9" + SAID.format(1)):
        Journal.open(tmp_path / "later.bin")
    assert JournalHeader.from_bytes(header, "j").format_version == 1

    seal = tmp_path / "checkpoint-4" / SEAL
    seal.write_text(json.dumps(json.loads(seal.read_text()) | LATER | {"unheard": 1}))
    with pytest.raises(InputError, match="checkpoint-4: is a checkpoint of format 9"):
        newest_checkpoint(tmp_path)
    trainer = earlier.trainer_of(earlier.model_of("adapter"), str(tmp_path), {})
    with pytest.raises(InputError, match=r"install zopeft 7\.1\.0 or later"):
        trainer.train(resume_from_checkpoint=True)

    unpacked("networks", tmp_path / "f")
    config = tmp_path / "f" / "finetuner_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | LATER | {"unheard": 1}))
    with pytest.raises(InputError, match="is a fine-tuner of format 9" + SAID.format(4)):
        zopeft.FineTuner.from_pretrained(tmp_path / "f")
