"""The bench on a real model: its rules, its rows, and the smallest case of it."""

import json
import math
import os
import random
import sys
from pathlib import Path

import pytest
import torch

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.models import load_model
from zopeft.tasks import task_loss
from zopeft.tasks.scores import OptionScores

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
DATA = MODEL_DIR.parent / "data"
REAL = os.environ.get("ZOPEFT_REAL_MODEL", "")


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules, which stand beside the package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import real_model_ground
        import real_model_report
        import real_model_runs

        yield {
            "ground": real_model_ground,
            "runs": real_model_runs,
            "report": real_model_report,
        }
    finally:
        sys.path.remove(str(BENCHMARKS))


def losses(*ends, steps=100, noise=0.3, seed=0):
    """A run's losses: a line from end to end, and the scatter of batches."""
    draw = random.Random(seed)
    count = len(ends) - 1
    found = []
    for step in range(steps):
        part = min(int(step * count / steps), count - 1)
        share = step * count / steps - part
        found.append(ends[part] * (1 - share) + ends[part + 1] * share + draw.gauss(0, noise))
    return found


@pytest.mark.parametrize(
    ("run", "gone"),
    [
        (losses(3.0, 3.0), False),
        (losses(3.0, 3.0, seed=1), False),
        (losses(8.0, 1.0), False),
        # A quarter of the fall is given back, or more than half of it.
        (losses(8.0, 1.0, 2.5), False),
        (losses(8.0, 1.0, 6.0), True),
        (losses(3.0, 5.0), True),
        ([*losses(3.0, 1.0), math.nan], True),
        # Within the scatter of batches nothing has risen.
        (losses(3.0, 3.2, noise=1.0), False),
        ([2.0], False),
    ],
)
def test_a_run_has_diverged_that_ends_far_above_its_minimum(bench, run, gone):
    assert bench["runs"].diverged(run) is gone


def test_what_the_prompt_says_of_labels_is_taken_out(bench):
    right = torch.tensor([0, 1] * 10)
    # Label 1 is always likelier, and likelier still where it is right.
    bias = torch.tensor([-3.0, -1.0]).repeat(20, 1)
    sums = bias + 0.5 * torch.nn.functional.one_hot(right, 2)
    found = OptionScores(sums.double(), torch.ones(20, 2), [("no", "yes")] * 20, right)
    told = bench["ground"].calibrated_scores(found)
    assert told["metric"] == 0.5 and told["predicted"] == {"no": 0.0, "yes": 1.0}
    assert told["calibrated"] == told["median"] == 1.0
    # Options of each row's own: one that is likely after anything says nothing.
    own = OptionScores(sums.double(), torch.ones(20, 2), [(str(n), "b") for n in range(20)], right)
    prior = OptionScores(bias.double(), own.tokens, own.texts, right)
    assert bench["ground"].calibrated_scores(own, prior) == {"metric": 0.5, "calibrated": 1.0}


@pytest.fixture(scope="module")
def finetuner(tmp_path_factory):
    model, _ = load_model(str(MODEL_DIR), "float32", device="cpu")
    folder = tmp_path_factory.mktemp("real") / "finetuner"
    settings = {"steps": 8, "batch_size": 2, "rank": 2, "train_examples": 20, "max_length": 64}
    zopeft.meta_train(model, tasks=["cb"], data=DATA / "cb", **settings).save_pretrained(folder)
    return str(folder)


def test_controls_without_subspaces_need_some(bench, finetuner, tmp_path):
    ground = bench["ground"]
    scales = ground.made(finetuner, "scales")
    assert ground.made(finetuner).bases and not scales.bases
    assert torch.equal(scales.nets.b2, ground.made(finetuner).nets.b2)
    plain = scales.save_pretrained(tmp_path / "plain")
    for control in ("scales", "random"):
        with pytest.raises(InputError, match="holds no subspace"):
            ground.made(str(plain), control)


def ground_of(bench, task, space, model=str(MODEL_DIR), length=64):
    amounts = bench["ground"].Amounts(held=8, reported=16, answers=2)
    return bench["ground"].RealGround(model, str(DATA), task, space, 2, length, amounts)


def test_batches_are_packed_and_rows_are_whole(bench):
    ground = ground_of(bench, "copa", "full", length=1000)
    one = bench["ground"].competitors("")[0]
    ground.reset(1, one)
    batch = next(ground.feed(1))
    closure = ground.closure(None, batch)
    padded = task_loss(ground.model, batch).detach()
    assert float(closure().detach()) == pytest.approx(float(padded), rel=1e-4)
    # Two short texts in one row.
    assert closure.batch["layout"].ids.shape[0] == 1
    every = sorted(longest(ground.train))
    middle = every[len(every) // 2]
    short = ground_of(bench, "copa", "full", length=middle)
    assert every[0] < middle < every[-1]
    assert longest(short.train) and max(longest(short.train)) <= middle
    assert len(short.train) < len(every) - 8
    with pytest.raises(InputError, match="0 rows are as short, got 3"):
        ground_of(bench, "copa", "full", length=3)


def longest(encoded):
    pairs = [zip(one.prompts, one.options, strict=True) for one in encoded]
    return [max(len(prompt) + len(option) for prompt, option in own) for own in pairs]


def test_runs_are_kept_and_not_made_again(bench, finetuner, tmp_path, monkeypatch):
    runs, ground = bench["runs"], ground_of(bench, "copa", "full")
    line = f"finetuner {finetuner} clip=1 label=tight"
    known = {one.name: one for one in bench["ground"].competitors(finetuner, [line])}
    assert next(iter(known)) == "mezo" and known["tight"].identity["options"] == {"clip": "1"}
    assert known["tight"].identity["finetuner"] == known["learned"].identity["finetuner"]
    path, told = tmp_path / "rows.jsonl", {"model": "m", "task": "copa", "space": "full"}

    def sitting(forwards=6, batch=2):
        told_all = {**told, "batch": batch}
        return runs.Sitting(ground, path, told_all, forwards, {"batch": batch})

    made = []
    went = runs.go
    monkeypatch.setattr(runs, "go", lambda *args: made.append(args[1:]) or went(*args))
    mezo = known["mezo"]
    for name in ("mezo", "tight"):
        sitting().hold(known[name], mezo, [1], ["auto", "best"])
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    tried = {row["seed"] for row in rows if row["kind"] == "rate"}
    assert tried == set(runs.SEARCHED) and not tried & {1}
    ran = [(row["entry"], row["kind"]) for row in rows if row["kind"] in ("run", "auto")]
    assert ran == [(n, kind) for n in ("mezo", "tight") for kind in ("auto", "run")]
    last = rows[-1]
    assert last["forwards"] <= 6 and last["after"]["validation"]["loss"] == last["loss_after"]
    rates = {}
    for row in rows:
        if row["kind"] == "rate" and row["entry"] == "tight":
            rates.setdefault(row["lr"], []).append(row["loss_after"])
    assert last["lr"] == min(rates, key=lambda lr: sum(rates[lr]))
    before, made[:] = len(made), []
    assert before > 6
    sitting().hold(known["tight"], mezo, [1], ["auto", "best"])
    assert not made
    # Another budget, batch or seed is another run.
    sitting(8).hold(mezo, mezo, [1], ["auto"])
    sitting(6, 3).hold(mezo, mezo, [1], ["auto"])
    sitting().hold(mezo, mezo, [2], ["auto"])
    assert len(made) == 3
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    # Wherever it is measured, the start is the untrained model.
    first, again = (row for row in rows if row["kind"] == "start")
    assert first["validation"] == again["validation"] and first["held"] == again["held"]
    # A reported run is looked at on its way, at the weights; one that chooses a rate is not.
    assert [at for at, _ in last["looks"]] == [2, 4, 6]
    assert last["looks"][-1][1] == last["after"]["held"]["loss"]
    assert all(row["looks"] == [] for row in rows if row["kind"] == "rate")
    assert [at for at, _ in went(ground, mezo, 1e-6, 1, 6, looks=2).looks] == [4, 6]
    text = bench["report"].markdown(rows)
    assert text.count("before tuning") >= 2 and "| copa | `tight` | 1 |" in text


def looked(*values, before=8.0, end=0.0, diverged=False):
    looks = [[60 * (k + 1), value] for k, value in enumerate(values)]
    found = {"before": {"held": {"loss": before}}, "after": {"held": {"loss": end}}}
    return {**found, "looks": looks, "diverged": diverged, "forwards": 240}


def test_passes_to_the_held_out_loss_are_between_looks(bench):
    report = bench["report"]
    base = {1: looked(6.0, 3.0, end=2.0), 2: looked(3.0, end=4.0), 3: looked(end=4.0)}
    # MeZO need not have been looked at along the way: all of its passes count.
    base[4] = {**looked(end=5.0), "looks": []}
    runs = {1: looked(2.0, 1.0), 2: looked(6.0, None, 3.0), 3: looked(7.0, end=5.0)}
    runs |= {4: looked(7.0, 6.0, end=4.0), 5: looked(1.0)}
    # The second comes to 4 between infinity and 3, which is at 3's look; the fourth at its end.
    assert report.reaching_held(runs, base) == [(60.0, 240.0), (180.0, 240.0), (180.0, 240.0)]
    assert report.crossing(looked(2.0, 1.0), 5.0) == pytest.approx(30.0)
    assert report.crossing(looked(2.0), 9.0) == 0.0
    assert report.crossing(looked(2.0, end=1.0), 0.5) is None
    runs[1]["diverged"] = True
    assert report.reaching_held(runs, base) == [(180.0, 240.0), (180.0, 240.0)]
    runs[2]["looks"] = []
    assert report.reaching_held(runs, base) == [(180.0, 240.0)]


def kept(entry, seed, loss, lr="auto", **more):
    kind = "auto" if lr == "auto" else "run"
    row = {"kind": kind, "entry": entry, "seed": seed, "lr": lr, "model": "smollm2"}
    row |= {"task": "sst2", "space": "full", "budget": 600, "batch": 8, "forwards": 599}
    row |= {"before": {"held": {"loss": 8.0}}, "looks": [], "diverged": False}
    after = {"held": {"loss": loss}, "validation": {"loss": loss, "metric": 0.5}}
    return row | {"loss_after": loss, "after": after} | more


def test_a_claims_table_has_its_runs_beside_mezos_of_the_same_seed(bench):
    report = bench["report"]
    start = {"kind": "start", "entry": "", "model": "smollm2", "task": "sst2", "space": "full"}
    start |= {"batch": 8, "validation": {"loss": 8.0, "metric": 0.4}}
    rows = [start, kept("mezo", 1, 1.0), kept("mezo", 2, 0.8), kept("mezo", 1, 0.6, lr=1e-5)]
    rows += [kept("learned", 1, 0.7, looks=[[60, 4.0], [120, 0.9]]), kept("learned", 2, 0.9)]
    rows += [kept("learned", 3, 0.1), kept("shuffled", 1, 0.5, diverged=True)]
    lines = report.markdown(rows, ["learned"]).splitlines()
    assert lines[0] == f"### {report.CLAIMS['learned'].asks}"
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| sst2")]
    assert [one[1] for one in cells] == [
        "before tuning",
        "`mezo`",
        "`mezo`, best rate",
        "`learned`",
    ]
    learned = cells[-1]
    assert learned[2:4] == ["3", "0.567 ± 0.416"]
    # MeZO's third seed is not there; its best rate has the first alone.
    assert "1 of 2 (best rate: 0 of 1)" in learned and "0.20 of its passes (1 of 1)" in learned
    assert "1 of 1" in cells[2]
    # What has diverged is not below, and counts in no mean.
    told = report.markdown(rows, ["controls"])
    assert "| `shuffled` | 1, 1 diverged |  |  |  | 0 of 1" in told
    assert "None of these entries has runs" in report.markdown(rows, ["directions"])
    # Without names nothing is left out that is kept.
    every = report.markdown([*rows, kept("own", 1, 0.5)])
    assert all(one.asks in every for one in report.CLAIMS.values())
    assert "### Others: smollm2, full, 600" in every and "| sst2 | `own` | 1 | 0.500 |" in every
    with pytest.raises(InputError, match=r"--report: no such claim, got 'lernt'; take learned, "):
        report.markdown(rows, ["lernt"])


def test_a_pages_tables_are_those_of_the_kept_rows(bench, tmp_path):
    report = bench["report"]
    text = (BENCHMARKS / "real_model.md").read_text()
    marks = [line.split()[2] for line in text.splitlines() if line.startswith("<!-- claim ")]
    assert marks == [*report.CLAIMS] and text.count("<!-- end -->") == len(marks)
    told = report.filled(text, report.read(BENCHMARKS / "results" / "real_model"))
    assert told == text, "python benchmarks/real_model.py --report --into benchmarks/real_model.md"
    page = tmp_path / "page.md"
    with pytest.raises(InputError, match="--into: no such page"):
        report.write_into(page, [])
    page.write_text("before\n<!-- claim short -->\n<!-- end -->\nafter\n")
    report.write_into(page, [])
    assert page.read_text().startswith("before\n<!-- claim short -->\n\n### What do two hundred")
    assert page.read_text().endswith("\n<!-- end -->\nafter\n")
    for text in ("<!-- claim short -->\n", "<!-- claim a -->\n<!-- claim b -->\n<!-- end -->\n"):
        page.write_text(text)
        with pytest.raises(InputError, match="--into: no line <!-- end --> after the mark"):
            report.write_into(page, [])
        assert page.read_text() == text


def test_runs_of_two_fine_tuners_in_a_table_are_told_apart(bench):
    start = {"kind": "start", "entry": "", "model": "smollm2", "task": "sst2", "space": "full"}
    start |= {"batch": 8, "validation": {"loss": 8.0}}
    own, other = {"finetuner": "v2_11112222"}, {"finetuner": "v2_33334444"}
    rows = [start, kept("mezo", 1, 1.0), kept("learned", 1, 0.9, **own)]
    turns = kept("learned turns", 1, 0.9, **other)
    text = bench["report"].markdown([*rows, turns], ["options"])
    assert "| `learned` (v2_1111) |" in text and "| `learned turns` (v2_3333) |" in text
    assert "| `mezo` |" in text
    assert "v2_" not in bench["report"].markdown([*rows, turns | own], ["options"])


def test_a_derivative_is_as_far_away_as_was_asked(bench, tmp_path, monkeypatch):
    import derivative

    def derive(out, *more):
        words = [str(MODEL_DIR), str(tmp_path / out), "--data", str(DATA), "--task", "cb"]
        words += ["--column", "premise", "--away", "0.004", "--length", "32", *more]
        monkeypatch.setattr(sys, "argv", ["derivative.py", *words])
        derivative.derive(derivative.arguments())

    derive("near")
    folders = MODEL_DIR, tmp_path / "near"
    base, found = (load_model(str(one), "float32", device="cpu")[0] for one in folders)
    start = {name: weight.detach() for name, weight in base.named_parameters()}
    assert 0.004 <= derivative.distance(found, start) < 0.008
    for out, more, message in (
        ("near", (), "OUT: exists"),
        ("far", ("--column", "nothing"), "--column: not in"),
        ("far", ("--task", "none"), "--data: no such file"),
        ("far", ("--lr", "1e38"), "--lr: step 1 went to"),
    ):
        with pytest.raises(InputError, match=message):
            derive(out, *more)
        assert not (tmp_path / "far").exists()


def test_what_does_not_serve_a_space_is_said_once(bench, finetuner, tmp_path):
    ground, runs = ground_of(bench, "copa", "lora"), bench["runs"]
    known = {one.name: one for one in bench["ground"].competitors(finetuner)}
    sitting = runs.Sitting(ground, tmp_path / "rows.jsonl", {}, 4, {})
    for _ in range(2):
        for name in ("rows", "scales", "random"):
            sitting.hold(known[name], known["mezo"], [1, 2], ["auto", "best"])
    rows = [(row["kind"], row["entry"]) for row in sitting.rows if row["kind"] != "start"]
    assert rows == [("refused", "rows")]


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="ZOPEFT_REAL_MODEL names no folder of a pretrained model")
def test_a_real_model_learns_and_is_tuned(bench, tmp_path):
    model, tokenizer = load_model(REAL, "float32", device="cpu")
    settings = {"steps": 8, "batch_size": 1, "rank": 2, "train_examples": 20, "max_length": 48}
    made = zopeft.meta_train(model, ["cb"], tokenizer, data=DATA / "cb", **settings)
    folder = str(made.save_pretrained(tmp_path / "finetuner"))
    assert made.bases and FineTuner.from_pretrained(folder).match(zopeft.discover(model)).report
    del model
    ground = ground_of(bench, "sst2", "full", REAL)
    sitting = bench["runs"].Sitting(ground, tmp_path / "rows.jsonl", {}, 30, {})
    known = bench["ground"].competitors(folder)
    for one in known:
        if one.name in ("mezo", "rows", "learned"):
            sitting.hold(one, known[0], [1], ["auto"])
    found = {row["entry"]: row for row in sitting.rows if row["kind"] == "auto"}
    assert list(found) == ["mezo", "rows", "learned"]
    for row in found.values():
        assert 20 < row["forwards"] <= 30 and not row["diverged"]
        assert row["loss_after"] < 0.97 * row["loss_before"]
        assert {"metric", "calibrated", "median", "predicted"} <= set(row["after"]["validation"])
    losses = {name: row["loss_after"] for name, row in found.items()}
    # Of a vocabulary of thousands, the rows of the label words are what has to move.
    assert losses["rows"] < 0.6 * losses["mezo"] and losses["learned"] != losses["mezo"]
    ground.reset(1, known[0])
    assert ground.loss(ground.held) == pytest.approx(
        sitting.start(known[0])["held"]["loss"], abs=1e-4
    )
