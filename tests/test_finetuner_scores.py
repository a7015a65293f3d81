"""What benches measured of a fine-tuner, in its card: beside its controls, and nothing lost."""

import json

import pytest

from zopeft.blocks import discover
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.finetuner.digest import digest_of
from zopeft.finetuner.scores import HEADING, cells, columns, comparisons, put_into, section, title
from zopeft.jobs.bench.bench import bench
from zopeft.jobs.bench.cells import Request
from zopeft.jobs.score import score
from zopeft.models import load_model
from zopeft.report.rows import read_rows

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
    import shutil

    shutil.copytree(made, tmp_path / "all")
    return tmp_path / "all"


def test_a_card_tells_scores_beside_controls(place):
    folder = place / "own"
    before = FineTuner.from_pretrained(folder)
    files = {one.name: one.read_bytes() for one in folder.iterdir()}
    told = score(str(folder), [str(place / "bench")])
    assert told["added"] == 1
    (one,) = told["scores"]
    assert (one["task"], one["space"], one["forwards"], one["batch_size"]) == (
        "sst2",
        "full",
        12,
        4,
    )
    assert (one["rates"], one["seeds"], one["metric"]) == ("auto", [1, 2], "accuracy")
    names = [entry["name"] for entry in one["entries"]]
    assert names == [
        *("MeZO", "mezo clip=1", "this fine-tuner, clip=1", "shuffled, clip=1"),
        *("untrained, clip=1", "mezo noise=rademacher"),
        *("this fine-tuner", "shuffled", "untrained"),
    ]
    rows = read_rows(place / "bench")
    losses = [row["val_loss"] for row in rows if row["entry"] == "mezo"]
    assert one["entries"][0]["validation_loss"]["mean"] == pytest.approx(sum(losses) / 2)
    assert one["entries"][0]["below"] is None and one["entries"][-1]["pairs"] == 2
    # No folder of the machine, and no other fine-tuner, gets into what is shared.
    assert str(place) not in json.dumps(one) and "other" not in json.dumps(one)
    after = FineTuner.from_pretrained(folder)
    assert digest_of(after) == digest_of(before)
    assert comparisons(after.config.training) == told["scores"]
    assert (folder / "finetuner.safetensors").read_bytes() == files["finetuner.safetensors"]
    card = (folder / "README.md").read_text()
    assert card.startswith(files["README.md"].decode().rstrip("\n"))
    assert "Controls: shuffled: all that it learned serves other blocks; untrained: " in card
    assert f"### {title(one)}" in card and card.count("| this fine-tuner |") == 1
    # What is written anew says the same.
    after.save_pretrained(place / "again")
    assert (place / "again" / "README.md").read_text().split() == card.split()


def test_an_edited_card_keeps_its_words_and_scores_take_each_others_place(place):
    folder, runs = place / "own", str(place / "bench")
    file = folder / "README.md"
    file.write_text(file.read_text() + f"\nMy words.\n\n{HEADING}\n\ngone\n\n## Thanks\n\nto all\n")
    for _ in range(2):
        assert len(score(str(folder), [runs, runs])["scores"]) == 1
        text = file.read_text()
        assert "My words.\n\n## Scores\n\nMeans" in text and text.endswith("## Thanks\n\nto all\n")
        assert text.count(HEADING) == 1 and "gone" not in text and text.count("### ") == 1
    values = json.loads((folder / "finetuner_config.json").read_text())
    values["training"]["scores"][0] |= {"task": "else", "entries": [{"name": "half"}]}
    values["training"]["scores"].append("nothing")
    (folder / "finetuner_config.json").write_text(json.dumps(values))
    # What somebody else wrote there in another form is no comparison, and breaks nothing.
    assert comparisons(FineTuner.from_pretrained(folder).config.training) == []
    assert len(score(str(folder), [runs])["scores"]) == 1


def test_what_cannot_be_scored_changes_nothing(place, tmp_path):
    folder = place / "own"
    before = {one: one.read_bytes() for one in sorted(folder.iterdir())}
    changed = FineTuner.from_pretrained(folder)
    changed.nets.b2.data += 1.0
    changed.save_pretrained(place / "changed")
    told = r"BENCH: no reported run of this fine-tuner in it, got 'mezo, .*give a bench"
    for finetuner, runs, message in (
        (place / "changed", place / "bench", told),
        ("owner/name", place / "bench", "FINETUNER: no such folder, whose card"),
        (place / "bench", place / "bench", "not a fine-tuner"),
        (folder, tmp_path / "none", "no rows.jsonl in this folder"),
    ):
        with pytest.raises(InputError, match=message):
            score(str(finetuner), [str(runs)])
    with pytest.raises(InputError, match=r"no rows\.jsonl"):
        score(str(folder), [str(place / "bench"), str(tmp_path / "none")])
    assert {one: one.read_bytes() for one in sorted(folder.iterdir())} == before


def comparison(**more):
    entry = {"name": "MeZO", "validation_loss": {"mean": 1.25, "std": 0.5, "count": 2}}
    entry |= {"train_loss": {"mean": None}, "metric": None, "below": None, "pairs": 2}
    one = {"model": "m", "task": "t", "space": "full", "forwards": 600, "batch_size": 8}
    one |= {"rates": "best", "seeds": [1, 2], "metric": "", "entries": [entry | {"diverged": 1}]}
    return one | more


def test_a_comparison_in_words():
    one = comparison()
    assert title(one) == (
        "t, full, m: 600 forward passes of 8 rows, each at its best learning rate, seeds 1, 2"
    )
    assert columns(one) == [
        *("entry", "validation loss", "training loss", "below MeZO", "passes saved")
    ]
    assert cells(one) == [["MeZO", "1.250 ± 0.500 (1 diverged)", "-", "", ""]]
    mine = {**one["entries"][0], "name": "a|b", "below": 1, "saving": 0.4, "diverged": 0}
    both = comparison(entries=[*one["entries"], mine], metric="f1")
    assert cells(both)[1] == ["a|b", "1.250 ± 0.500", "-", "-", "1 of 2", "40%"]
    assert "| a/b | 1.250 ± 0.500 | - | - | 1 of 2 | 40% |" in section({"scores": [both]})
    assert section({"scores": "none"}) == section({}) == ""


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("# A\n", "# A\n\n## Scores\n\nnew\n"),
        ("# A\n\n## Scores\n\n### old\n\n1\n", "# A\n\n## Scores\n\nnew\n"),
        ("## Scores\nold\n## B\nb\n", "\n## Scores\n\nnew\n\n## B\nb\n"),
    ],
)
def test_the_section_on_scores_alone_is_replaced(card, found):
    assert put_into(card, "## Scores\n\nnew\n") == found
    assert put_into(found, "## Scores\n\nnew\n") == found


def test_by_command(place, zopeft_command):
    folder, runs = place / "own", place / "bench"
    found = zopeft_command.json("finetuner", "score", folder, runs)
    assert (found["job"], found["added"], len(found["scores"])) == ("finetuner score", 1, 1)
    for words in (("score", folder, runs), ("show", folder)):
        code, out, _ = zopeft_command("finetuner", *words)
        assert code == 0 and "below MeZO" in out and "this fine-tuner" in out
    assert "scores" not in out.partition("training")[2].partition("below MeZO")[0].split()
    line = zopeft_command.refused("finetuner", "score", place / "other", place / "none")
    assert "no rows.jsonl in this folder" in line
