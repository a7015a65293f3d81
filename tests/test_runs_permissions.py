"""Files that are saved have the permissions that the umask gives, and appear whole."""

import os
import stat

import pytest

from zopeft.staging import staged, staged_files, sweep


@pytest.fixture
def group_may_read():
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


def modes_in(folder):
    found = {p: stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()}
    return {path.relative_to(folder).as_posix(): mode for path, mode in found.items()}


def test_all_files_of_a_run(zopeft_command, tiny_model, tiny_data, tmp_path, group_may_read):
    words = (tiny_model, "--task", "sst2", "--data", tiny_data, "--steps", 2, "--batch-size", 2)
    words = (*words, "--lr", "1e-3", "training.save_steps=2", "training.eval_before=false")
    zopeft_command.json("tune", *words, "--out", tmp_path / "out")
    found = modes_in(tmp_path / "out")
    assert len(found) >= 14
    weights = "adapter_model.safetensors"
    assert {weights, f"checkpoint-2/{weights}", "journal.bin", "loss.png", "run.json"} <= set(found)
    assert "journal_start.safetensors" in found
    assert {name: mode for name, mode in found.items() if mode != group_may_read} == {}


def test_a_fine_tuner_and_a_recipe(zopeft_command, tiny_model, tmp_path, group_may_read):
    import zopeft
    from zopeft.models import load_model

    blocks = zopeft.discover(load_model(str(tiny_model))[0], "full")
    zopeft.FineTuner.initial(blocks).save_pretrained(tmp_path / "finetuner")
    zopeft_command.json("recipe", "copy", "embedded/tune", tmp_path / "own.yaml")
    found = modes_in(tmp_path)
    assert len(found) == 4
    assert set(found.values()) == {group_may_read}


def test_a_file_appears_whole_or_not_at_all(tmp_path, group_may_read):
    file = tmp_path / "a.png"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError), staged(file) as place:
        place.write_text("half")
        assert file.read_text() == "old"
        raise ZeroDivisionError
    with staged(file) as place:
        assert place.suffix == ".png" and place.parent == tmp_path
        # As libraries do that write a private file and move it.
        place.unlink()
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
    assert file.read_text() == "" and modes_in(tmp_path) == {"a.png": group_may_read}
    with pytest.raises(FileExistsError), staged(file, new=True) as place:
        place.write_text("new")
    assert file.read_text() == "" and len(list(tmp_path.iterdir())) == 1


def test_files_without_links_are_not_replaced_either(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("zopeft.staging.os.link", link)
    for wrong in (False, True):
        with pytest.raises(FileExistsError) if wrong else staged(tmp_path / "a", new=True) as place:
            if wrong:
                with staged(tmp_path / "a", new=True) as place:
                    place.write_text("other")
            place.write_text("first")
    assert (tmp_path / "a").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_are_the_last_of_several_files(tmp_path, monkeypatch):
    moved = []
    real = os.replace
    monkeypatch.setattr(
        "zopeft.staging.os.replace", lambda a, b: (moved.append(b.name), real(a, b))
    )
    with staged_files(tmp_path) as place:
        for name in ("model.safetensors", "config.json", "z.txt"):
            (place / name).write_text("x")
        assert list(tmp_path.iterdir()) == [place]
    assert moved == ["config.json", "z.txt", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(moved)
    (tmp_path / ".staged-1").mkdir()
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
