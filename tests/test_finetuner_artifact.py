"""Saving, loading and sharing; every kind of damaged folder is one line."""

import json
import math
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_blocks_families import tiny

from zopeft import hub
from zopeft.blocks import discover
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner, storage

FILES = {"finetuner_config.json", "finetuner.safetensors", "README.md"}


@pytest.fixture(scope="module")
def blocks():
    return discover(tiny("llama"))


@pytest.fixture
def finetuner(blocks):
    made = FineTuner.initial(blocks, seed=1)
    made.config.base_model = "owner/base"
    made.config.training = {
        "tasks": ["copa"],
        "settings": {"lr": 1e-2, "steps": 300},
        "loss_last": torch.tensor(0.5),
        "worst": float("nan"),
        "note": "one | two\nthree",
        "table": {str(i): i for i in range(200)},
    }
    return made


@pytest.fixture
def folder(finetuner, tmp_path):
    return finetuner.save_pretrained(tmp_path / "saved")


def test_round_trip(finetuner, folder, blocks):
    assert {p.name for p in folder.iterdir()} == FILES
    again = FineTuner.from_pretrained(folder)
    for mine, theirs in zip(again.nets.parameters(), finetuner.nets.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.requires_grad
    assert again.config.groups == finetuner.config.groups
    assert again.config.features == finetuner.config.features
    assert again.config.training["loss_last"] == 0.5
    assert again.config.training["worst"] is None
    assert again.config.versions["torch"] == torch.__version__
    assert again.match(blocks).count == 21
    assert FineTuner.from_pretrained(str(folder)).config == again.config


def test_the_tensors_are_float32_and_named(folder):
    tensors = load_file(folder / "finetuner.safetensors")
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        "w1": (21, 64, 5),
        "b1": (21, 64),
        "w2": (21, 64),
        "b2": (21,),
    }
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_the_configuration_holds_the_contract(folder):
    values = json.loads((folder / "finetuner_config.json").read_text())
    assert values["format_version"] == 3
    assert values["base_model"] == "owner/base"
    assert values["architecture"] == "LlamaForCausalLM"
    assert values["num_layers"] == 2
    assert values["groups"][1] == {
        "key": "model.layers.0.self_attn.q_proj.weight",
        "role": "q_proj",
        "base_role": "q_proj",
        "layer": 0,
        "depth": 0.0,
    }
    assert (values["hidden"], values["sharing"], values["normalise"]) == (64, "block", True)


def test_the_card(folder):
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["base_model"] == "owner/base"
    assert fields["library_name"] == "zopeft"
    assert fields["license"] == "apache-2.0"
    assert "zeroth-order" in fields["tags"]
    assert '| tasks | ["copa"] |' in body
    assert "| note | one / two three |" in body
    assert "| table | see `finetuner_config.json` |" in body
    assert "zopeft.FineTuner.from_pretrained" in body
    scores = body.partition("## Scores")[2]
    assert "| loss of its last batch | 0.5 |" in scores


def test_an_untrained_card_says_so(blocks, tmp_path):
    FineTuner.initial(blocks).save_pretrained(tmp_path)
    assert "random start" in (tmp_path / "README.md").read_text()


def test_a_local_base_model_does_not_give_its_path_away(blocks):
    name = blocks.base_name
    try:
        for given, kept in (
            ("/home/someone/models/stories", "stories"),
            ("owner/base", "owner/base"),
            ("./base", "base"),
            ("", ""),
        ):
            blocks.base_name = given
            assert FineTuner.initial(blocks).config.base_model == kept
    finally:
        blocks.base_name = name


def test_a_folder_with_files_is_kept_unless_told(finetuner, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and is not empty"):
        finetuner.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"mine.txt"}
    finetuner.save_pretrained(tmp_path, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == FILES | {"mine.txt"}
    with pytest.raises(InputError, match="is a file"):
        finetuner.save_pretrained(tmp_path / "mine.txt")


def edit(folder, **changes):
    path = folder / "finetuner_config.json"
    values = json.loads(path.read_text())
    for name, value in changes.items():
        if value is ...:
            del values[name]
        else:
            values[name] = value
    path.write_text(json.dumps(values))


def tensors(folder, **changes):
    path = folder / "finetuner.safetensors"
    held = {**load_file(path), **changes}
    save_file({n: t for n, t in held.items() if t is not None}, path)


def cut(folder, name, keep):
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])


GROUP = {"key": "k", "role": "r", "layer": None, "depth": None}
DAMAGE = {
    "no configuration": (
        lambda f: (f / "finetuner_config.json").unlink(),
        "not a fine-tuner: has no finetuner_config.json",
    ),
    "no weights": (
        lambda f: (f / "finetuner.safetensors").unlink(),
        "not a complete fine-tuner: has no finetuner.safetensors",
    ),
    "torn configuration": (
        lambda f: cut(f, "finetuner_config.json", 100),
        "unreadable JSON",
    ),
    "a list": (
        lambda f: (f / "finetuner_config.json").write_text("[1]"),
        "a JSON object is needed, got 'list'",
    ),
    "not text": (
        lambda f: (f / "finetuner_config.json").write_bytes(b"\xff\xfe\x00"),
        "unreadable JSON",
    ),
    "foreign configuration": (
        lambda f: (f / "finetuner_config.json").write_text('{"peft_type": "LORA"}'),
        "not a fine-tuner's configuration of format 4",
    ),
    "newer format": (
        lambda f: edit(f, format_version=5),
        "is a fine-tuner of format 5, where this version knows those up to 4; install zopeft ",
    ),
    "no groups": (lambda f: edit(f, groups=...), "no 'groups'"),
    "empty groups": (lambda f: edit(f, groups=[]), "group table is empty"),
    "malformed group": (lambda f: edit(f, groups=[{"key": "a"}]), "malformed"),
    "malformed layer": (lambda f: edit(f, groups=[{**GROUP, "layer": "x"}]), "malformed"),
    "unknown feature": (lambda f: edit(f, features=["mean", "x"]), "unknown feature"),
    "unknown sharing": (lambda f: edit(f, sharing="x"), "unknown sharing"),
    "text for a number": (lambda f: edit(f, hidden="64"), "whole number"),
    "text for a switch": (lambda f: edit(f, normalise="no"), "true or false"),
    "other group count": (
        lambda f: edit(f, groups=[GROUP]),
        "w1 does not fit the 1 groups",
    ),
    "other hidden width": (
        lambda f: edit(f, hidden=32),
        r"expected \[21, 32, 5\], got \[21, 64, 5\]",
    ),
    "torn weights": (lambda f: cut(f, "finetuner.safetensors", 500), "damaged or not safetensors"),
    "empty weights": (lambda f: cut(f, "finetuner.safetensors", 0), "damaged or not safetensors"),
    "missing tensor": (lambda f: tensors(f, b2=None), "must hold the 4 tensors w1, b1, w2, b2"),
    "foreign tensor": (lambda f: tensors(f, x=torch.ones(1)), "must hold the 4 tensors"),
    "not a number": (
        lambda f: tensors(f, b2=torch.full((21,), math.nan)),
        "b2 holds values that are not finite",
    ),
    "whole numbers": (
        lambda f: tensors(f, b2=torch.ones(21, dtype=torch.int64)),
        "b2 holds values that are not finite",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_one_line(kind, folder):
    damage, line = DAMAGE[kind]
    damage(folder)
    with pytest.raises(InputError, match=line) as caught:
        FineTuner.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no/such/folder", "no such folder, got 'no/such/folder'; give a folder or a hub id"),
        ("./nowhere", "no such folder"),
        ("/nowhere", "no such folder"),
        ("nowhere", "no such folder"),
        ("", "not a fine-tuner|no such folder"),
    ],
)
def test_a_name_that_is_neither_folder_nor_hub_id(name, line):
    with pytest.raises(InputError, match=line):
        FineTuner.from_pretrained(name)


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(InputError, match=r"is a file.*give the folder it stands in"):
        FineTuner.from_pretrained(folder / "finetuner_config.json")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.mark.usefixtures("offline")
def test_an_unreachable_hub_is_one_line_and_quick(finetuner):
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"the hub cannot be reached, got 'owner/name'") as caught:
        FineTuner.from_pretrained("owner/name")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"the hub cannot be reached.*save_pretrained"):
        finetuner.push_to_hub("owner/name")
    assert time.monotonic() - begun < 5
    with pytest.raises(InputError, match="not a hub id"):
        finetuner.push_to_hub("name")


def test_push_uploads_the_three_files(finetuner, monkeypatch):
    seen = {}

    class Client:
        def create_repo(self, repo_id, private, exist_ok):
            seen.update(repo_id=repo_id, private=private, exist_ok=exist_ok)
            return f"hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            seen["again"] = FineTuner.from_pretrained(folder_path)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(storage, "_client", lambda token: Client())
    assert finetuner.push_to_hub("owner/name", private=True) == "hub/owner/name"
    assert seen["repo_id"] == "owner/name"
    assert seen["private"] is True
    assert seen["again"].distance(finetuner)["total"] == 0


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    import huggingface_hub

    def refuse(*args, **options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"the hub refused \(RuntimeError: first line\)"):
        FineTuner.from_pretrained("owner/name")
