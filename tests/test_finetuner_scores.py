"""What benches measured of a fine-tuner, in its card: beside its controls, and nothing lost."""

import json
import shutil

import pytest

from zopeft.blocks import discover
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.finetuner.digest import digest_of
from zopeft.finetuner.scores import (
    FIRST,
    LAST,
    cells,
    columns,
    comparisons,
    put_into,
    section,
    title,
)
from zopeft.jobs.bench.bench import bench
from zopeft.jobs.bench.cells import Request
from zopeft.jobs.score import score
from zopeft.models import load_model
from zopeft.report.rows import FILE, read_rows

BUDGET = ("bench.forwards=12", "bench.grid=0", "bench.seeds=2", "training.batch_size=4")
LIMITS = ("task.eval_examples=8", "task.max_length=64", "bench.count_calibration=false")


@pytest.fixture(scope="module")
def made(tiny_model, tiny_data, tmp_path_factory):
    """A fine-tuner of the tiny model, another one, and a bench of the first."""
    place = tmp_path_factory.mktemp("scores")
    model, _ = load_model(str(tiny_model))
    for name, seed in (("own", 3), ("other", 4)):
        FineTuner.initial(discover(model, "full"), seed=seed).save_pretrained(place / name)
    own = place / "own"
    entries = [f"finetuner {own} clip=1", "mezo noise=rademacher"]
    entries += [f"finetuner {own} shuffled shuffle=2"]
    given = {
        "bench.models": ("MODEL", [str(tiny_model)]),
        "bench.tasks": ("--task", "sst2"),
        "bench.finetuners": ("--finetuner", [str(own), str(place / "other")]),
        "bench.entries": ("--method", entries),
        "task.data": ("--data", str(tiny_data)),
    }
    bench(Request(None, (*BUDGET, *LIMITS), given), str(place / "bench"))
    return place


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path / "all")
    return tmp_path / "all"


def rows_of(bench):
    return [json.loads(line) for line in (bench / FILE).read_text().splitlines()]


def write(bench, rows):
    (bench / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_card_tells_scores_beside_controls(place, made, tiny_model):
    folder = place / "own"
    before = FineTuner.from_pretrained(folder)
    files = {one.name: one.read_bytes() for one in folder.iterdir()}
    told = score(str(folder), [str(place / "bench"), str(place / "bench")])
    assert told["added"] == 1
    (one,) = told["comparisons"]
    assert (one["task"], one["space"], one["forwards"], one["batch_size"]) == (
        "sst2",
        "full",
        12,
        4,
    )
    assert (one["rates"], one["seeds"], one["metric"]) == ("auto", [1, 2], "accuracy")
    assert one["digest"] == digest_of(before) and one["model"] == tiny_model.name
    entries = {entry["name"]: entry for entry in one["entries"]}
    assert list(entries) == [
        *("MeZO", "mezo clip=1", "this fine-tuner, clip=1", "shuffled, clip=1"),
        *("untrained, clip=1", "mezo noise=rademacher", "shuffled, shuffle=2"),
        *("this fine-tuner", "shuffled", "untrained"),
    ]
    rows = read_rows(place / "bench")
    for name, entry in (("MeZO", "mezo"), ("this fine-tuner", f"finetuner {made / 'own'}")):
        losses = [row["val_loss"] for row in rows if row["entry"] == entry]
        assert entries[name]["validation_loss"]["mean"] == pytest.approx(sum(losses) / 2)
        assert len(losses) == 2
    assert entries["MeZO"]["below"] is None and entries["untrained"]["pairs"] == 2
    # No folder of the machine, and no other fine-tuner, gets into what is shared.
    for secret in (place, made, tiny_model.parent, "other"):
        assert str(secret) not in json.dumps(one)
    after = FineTuner.from_pretrained(folder)
    assert digest_of(after) == digest_of(before)
    assert comparisons(after.config.training, digest_of(after)) == told["comparisons"]
    assert (folder / "finetuner.safetensors").read_bytes() == files["finetuner.safetensors"]
    card = (folder / "README.md").read_text()
    assert card.startswith(files["README.md"].decode())
    assert "shuffled: all that it learned serves other blocks; untrained: networks at" in card
    assert f"### {title(one)}" in card and card.count("| this fine-tuner |") == 1
    # What is written anew says the same; and of what it was before it was changed, nothing.
    after.save_pretrained(place / "again")
    assert (place / "again" / "README.md").read_text().split() == card.split()
    for other in (after.shuffled(0), after.copy()):
        other.nets.b2.data += 1.0
        other.save_pretrained(place / "changed", overwrite=True)
        assert "this fine-tuner" not in (place / "changed" / "README.md").read_text()
        assert "comparisons" not in (place / "changed" / "finetuner_config.json").read_text()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_others_wrote_stays(place, end):
    folder, runs = place / "own", str(place / "bench")
    file, config = folder / "README.md", folder / "finetuner_config.json"
    mine = f"# Mine\n\n```bash\n# {FIRST}\n## Scores\n```\n\n{FIRST}\ngone\n{LAST}\nThanks to all\n"
    file.write_bytes(mine.replace("\n", end).encode())
    values = json.loads(config.read_text())
    values["training"] = {"scores": {"mine": 1}, "comparisons": ["nothing", {"model": 5}]}
    values["note"] = "kept"
    config.write_text(json.dumps(values))
    for _ in range(2):
        assert score(str(folder), [runs])["added"] == 1
        text = file.read_bytes().decode()
        first, _, rest = mine.replace("\n", end).partition(f"{FIRST}{end}gone{end}{LAST}{end}")
        assert text.startswith(first) and text.endswith(rest) and "gone" not in text
        assert text.count("### ") == 1 and text.count("\n") == text.count(end)
        found = json.loads(config.read_text())
        assert found["note"] == "kept" and found["training"]["scores"] == {"mine": 1}
        assert len(found["training"]["comparisons"]) == 1


def test_cells_are_told_apart_and_what_is_not_through_is_not_told(place):
    folder, bench = place / "own", place / "bench"
    rows = rows_of(bench)
    # The same entries on another task with other batches, later in the file.
    rows += [{**row, "task": "cb", "batch_size": 2, "key": f"cb{row['key']}"} for row in rows]
    write(bench, rows)
    found = {one["task"]: one for one in score(str(folder), [str(bench)])["comparisons"]}
    assert {task: one["batch_size"] for task, one in found.items()} == {"sst2": 4, "cb": 2}
    # Another folder's model has settings of its own, so both stand.
    more = [{**r, "model": "/b/model", "settings": "0", "key": f"b{r['key']}"} for r in rows]
    write(bench, [*rows, *more])
    assert score(str(folder), [str(bench)])["added"] == 4
    # Nothing of seeds that the fine-tuner has not run; a control that lacks some says which it has.
    write(
        bench, [r for r in rows[: len(rows) // 2] if (r["control"], r["seed"]) != ("untrained", 2)]
    )
    lone = [{**rows[0], "seed": 9, "key": "nine", "val_loss": 99.0}]
    write(bench, rows_of(bench) + lone)
    told = score(str(folder), [str(bench)])["comparisons"]
    (one,) = [one for one in told if one["task"] == "sst2" and one["settings"] != "0"]
    assert one["seeds"] == [1, 2] and one["entries"][0]["validation_loss"]["mean"] < 90
    assert [cell[0] for cell in cells(one)][-1] == "untrained (seeds 1)"
    # A bench that was broken off in its search of rates: no runs at lr=auto in the place of others.
    grid = {**rows[0], "role": "grid", "lr": 1e-3, "key": "grid", "seed": 0}
    write(bench, [*rows, grid, {**grid, "role": "fresh", "key": "fresh", "seed": 1}])
    assert [one["task"] for one in _scored(folder, bench)] == ["cb"]
    write(bench, [*rows[: len(rows) // 2], grid])
    before = (folder / "README.md").read_bytes()
    with pytest.raises(InputError, match="no reported runs of both MeZO and this fine-tuner"):
        score(str(folder), [str(bench)])
    assert (folder / "README.md").read_bytes() == before


def _scored(folder, bench):
    values = json.loads((folder / "finetuner_config.json").read_text())
    values["training"].pop("comparisons", None)
    (folder / "finetuner_config.json").write_text(json.dumps(values))
    return score(str(folder), [str(bench)])["comparisons"]


def test_what_has_diverged_is_counted_among_the_runs_that_are_shown(place):
    folder, bench = place / "own", place / "bench"
    rows = rows_of(bench)
    for row in rows:
        if row["control"] == "shuffled" and row["seed"] == 1:
            row |= {"diverged": True, "val_loss": None, "train_loss": None, "metric": None}
        if row["entry"] == "mezo noise=rademacher":
            row["options"] = {"mask": "/home/a/mask.safetensors"}
        if row["entry"] == "mezo clip=1":
            # As in rows of before fine-tuners had a digest.
            row |= {"finetuner": "/home/a/secret", "content": None}
    write(bench, rows)
    (one,) = score(str(folder), [str(bench)])["comparisons"]
    entries = {entry["name"]: entry for entry in one["entries"]}
    assert "mezo clip=1" not in entries and "mezo mask=mask.safetensors" in entries
    assert (entries["shuffled"]["diverged"], entries["shuffled"]["below"]) == (1, 0)
    assert entries["shuffled"]["ends"] == entries["shuffled"]["pairs"] == 2
    (cell,) = [cell for cell in cells(one) if cell[0] == "shuffled"]
    assert "(1 of 2 diverged)" in cell[1] and cell[2] != "-"
    # MeZO's run of a seed that diverged has no end to come to, and anything is below it.
    for row in rows:
        if row["entry"] == "mezo" and row["seed"] == 2:
            row |= {"diverged": True, "val_loss": None, "train_loss": None, "metric": None}
    write(bench, rows)
    (one,) = score(str(folder), [str(bench)])["comparisons"]
    own = next(e for e in one["entries"] if e["name"] == "this fine-tuner")
    assert (own["ends"], own["pairs"]) == (1, 2) and own["below"] >= 1
    assert "/home/a" not in (folder / "README.md").read_text()
    assert "/home/a" not in (folder / "finetuner_config.json").read_text()


def test_runs_of_what_stood_in_the_folder_before_are_not_its_own(place):
    folder, bench = place / "own", place / "bench"
    rows = rows_of(bench)
    for row in rows:
        if row["finetuner"] and row["seed"] == 1:
            row["content"] = "v2_other"
    write(bench, rows)
    (one,) = score(str(folder), [str(bench)])["comparisons"]
    assert one["seeds"] == [2] and {tuple(e["seeds"]) for e in one["entries"]} == {(2,)}
    # Two folders of one fine-tuner, and a model's folder that looks like owner/name.
    entry = next(row["entry"] for row in rows if row["finetuner"] and not row["control"])
    twins = [
        {**r, "entry": "finetuner ./own", "key": f"t{r['key']}"}
        for r in rows
        if r["entry"] == entry
    ]
    write(bench, [*rows, *twins])
    (one,) = score(str(folder), [str(bench)])["comparisons"]
    names = [e["name"] for e in one["entries"]]
    assert len(names) == len(set(names)) and any(name.endswith(" (2)") for name in names)


def test_other_seeds_and_other_entries_add_to_what_is_there(place):
    folder, bench = place / "own", place / "bench"
    rows = rows_of(bench)
    score(str(folder), [str(bench)])
    write(bench, [{**row, "seed": row["seed"] + 10} for row in rows])
    told = score(str(folder), [str(bench)])["comparisons"]
    assert [one["seeds"] for one in told] == [[1, 2], [11, 12]]
    write(
        bench,
        [{**row, "val_loss": 7.0} for row in rows if not row["control"] or not row["finetuner"]],
    )
    first, _ = score(str(folder), [str(bench)])["comparisons"]
    losses = {e["name"]: e["validation_loss"]["mean"] for e in first["entries"]}
    assert losses["this fine-tuner"] == losses["MeZO"] == 7.0 != losses["shuffled"]


@pytest.mark.parametrize(
    "wrong", [{"batch_size": "many"}, {"options": ["a"]}, {"content": 5}, {"control": {}}]
)
def test_rows_of_another_kind_are_one_line(place, wrong):
    rows = rows_of(place / "bench")
    write(place / "bench", [{**row, **wrong} for row in rows])
    with pytest.raises(InputError, match=f"is no row of a bench: {next(iter(wrong))}"):
        score(str(place / "own"), [str(place / "bench")])


def test_files_keep_their_permissions_and_are_written_both_or_neither(place, monkeypatch):
    from zopeft import staging

    folder = place / "own"
    file, config = folder / "README.md", folder / "finetuner_config.json"
    for path in (file, config):
        path.chmod(0o600)
    before = file.read_bytes(), config.read_bytes()
    moved = staging.os.replace

    def fails(source, target):
        if target == config:
            raise PermissionError(1, "Operation not permitted")
        moved(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "replace", fails)
        with pytest.raises(InputError, match=r"cannot be written \(Operation not permitted\)"):
            score(str(folder), [str(place / "bench")])
    assert (file.read_bytes(), config.read_bytes()) == before
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"training": {"note": float("nan")}}))
    with pytest.raises(InputError, match="cannot be written"):
        score(str(folder), [str(place / "bench")])
    config.write_bytes(before[1])
    score(str(folder), [str(place / "bench")])
    assert {path.stat().st_mode & 0o777 for path in (file, config)} == {0o600}


def test_what_cannot_be_scored_changes_nothing(place, tmp_path):
    folder = place / "own"
    before = {one: one.read_bytes() for one in sorted(folder.iterdir())}
    changed = FineTuner.from_pretrained(folder)
    changed.nets.b2.data += 1.0
    changed.save_pretrained(place / "changed")
    shutil.copytree(folder, place / "linked")
    (place / "linked" / "README.md").unlink()
    (place / "linked" / "README.md").symlink_to(folder / "README.md")
    shutil.copytree(folder, place / "odd")
    (place / "odd" / "README.md").unlink()
    (place / "odd" / "README.md").mkdir()
    odd = (place / "odd" / "finetuner_config.json").read_bytes()
    told = r"BENCH: .* has no reported runs of both MeZO and this fine-tuner .*, got 'mezo, "
    for finetuner, runs, message in (
        (place / "changed", place / "bench", told),
        ("owner/name", place / "bench", "FINETUNER: no such folder, whose card"),
        (place / "bench", place / "bench", "not a fine-tuner"),
        (folder, tmp_path / "none", "BENCH: no rows.jsonl in this folder"),
        (folder, place / "bench" / FILE, "BENCH: is a file"),
        (place / "linked", place / "bench", "is a link to a file that others may use"),
        (place / "odd", place / "bench", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            score(str(finetuner), [str(runs)])
    with pytest.raises(InputError, match=r"no rows\.jsonl"):
        score(str(folder), [str(place / "bench"), str(tmp_path / "none")])
    assert {one: one.read_bytes() for one in sorted(folder.iterdir())} == before
    assert (place / "odd" / "finetuner_config.json").read_bytes() == odd


def comparison(**more):
    entry = {"name": "MeZO", "control": "", "seeds": [1, 2], "metric": None, "train_loss": None}
    entry |= {"validation_loss": {"mean": 1.25, "std": 0.5, "count": 1}, "diverged": 1}
    entry |= {"below": None, "pairs": 2, "saving": None, "reached": 0, "ends": 2}
    one = {"model": "m", "task": "t", "space": "full", "forwards": 600, "batch_size": 8}
    one |= {"rates": "best", "settings": "0a", "seeds": [1, 2], "metric": "", "entries": [entry]}
    return one | {"digest": "v2_0"} | more


def test_a_comparison_in_words():
    one = comparison()
    assert title(one) == (
        "t, full, m: 600 forward passes of 8 rows, each at its best learning rate, seeds 1, 2 "
        "(settings 0a)"
    )
    assert columns(one) == [
        *("entry", "validation loss", "training loss", "below MeZO", "passes saved")
    ]
    assert cells(one) == [["MeZO", "1.250 ± 0.500 (1 of 2 diverged)", "-", "", ""]]
    mine = {**one["entries"][0], "name": "a|b", "below": 1, "saving": 0.4, "reached": 1}
    both = comparison(entries=[*one["entries"], mine | {"diverged": 0}], metric="f1")
    assert cells(both)[1] == ["a|b", "1.250 ± 0.500", "-", "-", "1 of 2", "40% (1 of 2)"]
    text = section([both])
    assert "| a/b | 1.250 ± 0.500 | - | - | 1 of 2 | 40% (1 of 2) |" in text
    assert "Controls" not in text and section([]) == ""
    never = comparison(entries=[mine | {"saving": None, "reached": 0, "control": "random"}])
    assert cells(never)[0][-1] == "never (0 of 2)" and "random: subspaces" in section([never])
    # MeZO has diverged, so that there is no end of its to come to.
    lost = comparison(entries=[mine | {"saving": None, "reached": 0, "ends": 0}])
    assert cells(lost)[0][-2:] == ["1 of 2", "-"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"seeds": 5}, {"task": ["a"]}, {"batch_size": None}, {"digest": 1}, {"entries": "none"}),
        *({"saving": "x"}, {"validation_loss": {"mean": "x", "std": 0}}, {"below": True}),
        *({"train_loss": {"mean": 1.0}}, {"seeds": [1, "2"]}, {"name": None}),
    ],
)
def test_what_is_no_comparison_is_left_out(wrong):
    good = comparison()
    training = {"comparisons": [good, good | wrong, "text", None]}
    if next(iter(wrong)) in good["entries"][0]:
        training["comparisons"][1] = comparison(entries=[good["entries"][0] | wrong])
    assert comparisons(training) == [good]
    assert comparisons({"comparisons": good}) == comparisons({}) == []
    assert comparisons(training, "v2_0") == [good] and comparisons(training, "v2_1") == []


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("", "{new}"),
        ("# A", "# A\n\n{new}"),
        ("# A\n", "# A\n\n{new}"),
        (f"a\n{FIRST}\n### old\n\n{LAST}\nb\n", "a\n{new}b\n"),
        (f"a\n{FIRST}\nb\n", f"a\n{FIRST}\nb\n\n{{new}}"),
        (f"{LAST}\n  {FIRST}  \nb\n{LAST}", f"{LAST}\n{{new}}"),
        # What stands after a mark without its end, or in a block of code, is somebody's.
        (f"{FIRST}\nkeep\n{FIRST}\nold\n{LAST}\n", f"{FIRST}\nkeep\n{{new}}"),
        (f"{FIRST}\nold\n{LAST}\nkeep\n{LAST}\n", f"{{new}}keep\n{LAST}\n"),
        (f"```\n{FIRST}\n```\nkeep\n{LAST}\n", f"```\n{FIRST}\n```\nkeep\n{LAST}\n\n{{new}}"),
        (f"~~~md\n{FIRST}\na\n{LAST}\n~~~\n", f"~~~md\n{FIRST}\na\n{LAST}\n~~~\n\n{{new}}"),
    ],
)
def test_the_section_alone_is_replaced(card, found):
    new = f"{FIRST}\nnew\n{LAST}\n"
    for _ in range(2):
        card = put_into(card, new)
        assert card == found.replace("{new}", new)


def test_by_command(place, zopeft_command):
    folder, runs = place / "own", place / "bench"
    found = zopeft_command.json("finetuner", "score", folder, runs)
    assert (found["job"], found["added"], len(found["comparisons"])) == ("finetuner score", 1, 1)
    for words in (("score", folder, runs), ("show", folder)):
        code, out, _ = zopeft_command("finetuner", *words)
        assert code == 0 and "below MeZO" in out and "this fine-tuner" in out
    changed = FineTuner.from_pretrained(folder)
    changed.nets.b2.data += 1.0
    from safetensors.torch import save_file

    save_file(dict(changed.nets.state_dict()), folder / "finetuner.safetensors")
    assert not zopeft_command.json("finetuner", "show", folder)["training"]["comparisons"]
    # It was not trained, whatever was measured of it.
    assert "none: the networks stand at their random start" in out
    line = zopeft_command.refused("finetuner", "score", place / "other", place / "none")
    assert "no rows.jsonl in this folder" in line
