"""Metrics of other libraries: numbers of rows together, their signs, and code that is not run."""

import importlib.util
import sys

import pytest
import torch

import zopeft
from zopeft.errors import InputError
from zopeft.tasks import load_task
from zopeft.tasks.objectives.accuracy import AccuracyLoss
from zopeft.tasks.objectives.library import library_metric, unknown_metric
from zopeft.tasks.objectives.objective import metric_of
from zopeft.tasks.objectives.prompted import Prompted
from zopeft.tasks.objectives.sampling import ScoreError
from zopeft.tasks.objectives.whole import WholeScore

METRIC = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": text, "references": REFERENCES}),
        )

    def _compute(self, predictions, references):
        hits = [one in some for one, some in zip(predictions, references)]
        return {"hits": sum(hits) / len(hits), "count": len(hits)}
"""
ROWS = [{"prompt": f"Say {n}", "answers": [f"{n}"]} for n in range(5)]


class Distinct:
    """How many different answers there are: a number of rows together."""

    name = "distinct"

    def __call__(self, given, accepted):
        return len(set(given)) / len(given)


def rows(*answers):
    return [Prompted((1,), "p", one, {}, f"row {n}") for n, one in enumerate(answers)]


def test_a_batch_has_one_number_and_all_rows_another(tiny_tuned):
    score = WholeScore(Distinct())
    assert score(rows(("a",), ("b",)), ["x", "x"], []) == [0.5, 0.5]
    with score.gathering() as gathered:
        assert score(rows(("a",), ("b",)), ["x", "x"], []) == [0.0, 0.0]
        score(
            rows(
                ("a",),
            ),
            ["y"],
            [],
        )
    assert score.value(*gathered) == pytest.approx(2 / 3)
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(tokenizer, metric="exact_match", max_new_tokens=3)
    objective.score = score
    given = []
    objective.score.compare = lambda texts, right: given.append(list(texts)) or float(len(texts))
    assert objective.evaluate(model, ROWS * 9) == 45.0
    assert [len(one) for one in given] == [45]
    assert float(objective.closure(model, ROWS)()) == -5.0


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "no finite number"), (None, "raised")])
def test_what_is_no_number_skips_the_step(tiny_tuned, value, told):
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(tokenizer, metric="exact_match", max_new_tokens=3)

    class Bad:
        name = "bad"

        def __call__(self, given, accepted):
            if value is None:
                raise ValueError("no classes")
            return value

    objective.score = WholeScore(Bad())
    assert objective.closure(model, ROWS)().isnan()
    assert told in objective.problem
    assert "bad" in objective.problem
    with pytest.raises(ScoreError, match=told):
        objective.score.value(["a"], [("a",)])


def test_options_are_compared_by_number(tiny_tuned):
    from zopeft.tasks.dataset import Collator, TaskDataset
    from zopeft.tasks.feed import Feed

    model, tokenizer = tiny_tuned
    task = load_task("sst2")
    data = [{"sentence": f"film {n}", "label": n % 2} for n in range(6)]
    seen = []

    class Spy:
        name = "spy"

        def __call__(self, given, accepted):
            seen.append((list(given), [one[0] for one in accepted]))
            return sum(a == b[0] for a, b in zip(given, accepted, strict=True)) / len(given)

    loss, plain = AccuracyLoss(WholeScore(Spy())), AccuracyLoss()
    encoded = TaskDataset(task, data, tokenizer, 64, "choice")
    batch = Collator(tokenizer)(encoded.encoded)
    assert torch.equal(loss(model, batch), plain(model, batch))
    assert seen[0][1] == ["0", "1"] * 3
    whole = loss.measured(model, Feed(model, tokenizer, task, data, 64, "choice"), 2)
    assert whole == pytest.approx(-float(plain(model, batch)))
    assert len(seen[-1][0]) == 6


def test_names():
    assert unknown_metric("f1") is unknown_metric("evaluate:any") is None
    assert metric_of(load_task("sst2"), "f1_macro") == "f1_macro"
    if importlib.util.find_spec("sklearn") is None:
        for name in ("f1_macro", "sklearn:f1"):
            assert "run `pip install 'zopeft[metrics]'`" in unknown_metric(name)
    with pytest.raises(InputError, match=r"is code on the hub, which is not run unasked.*trust"):
        library_metric("evaluate:rouge")
    if importlib.util.find_spec("evaluate") is None:
        with pytest.raises(InputError, match=r"not installed, got './mine'; run `pip install"):
            library_metric("evaluate:./mine")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("objective.metric=f1", "objective.trust_remote_code=true"), "evaluate:NAME, got 'f1'"),
        (("objective.metric=evaluate:rouge",), "is code on the hub, which is not run unasked"),
        (("objective.metric=exact_mach",), "did you mean 'exact_match'"),
    ],
)
def test_what_is_refused(tiny_model, tiny_data, tmp_path, zopeft_command, words, told):
    given = ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--objective", "metric")
    given = (*given, *words)
    assert told in zopeft_command.refused(*given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_code_of_a_model_or_a_record_is_not_run(tiny_model, tiny_data, tmp_path, zopeft_command):
    import shutil

    from zopeft.recipe.load import load_recipe

    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "mine").mkdir()
    (model / "mine" / "mine.py").write_text("raise SystemExit('it was run')")
    line = zopeft_command.refused(
        *("tune", model, "--task", "sst2", "--data", tiny_data, "--objective", "metric"),
        *(f"objective.metric=evaluate:{model}/mine", "--out", tmp_path / "out"),
    )
    assert "objective.metric: code in the model's folder is not run" in line
    stored = {"objective": {"name": "metric", "metric": "evaluate:x", "trust_remote_code": True}}
    with pytest.raises(InputError, match=r"not run by a record.s word.*metric=evaluate:x .*=true"):
        load_recipe("tune", None, ["objective.metric=evaluate:x"], {}, stored)
    again = ["objective.metric=evaluate:x", "objective.trust_remote_code=true"]
    load_recipe("tune", None, again, {}, stored)


def test_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    given, right = ["Yes.", "no", "maybe", "yes"], [("yes",), ("yes",), ("no",), ("yes", "no")]
    texts, rights = ["yes", "no", "maybe", "yes"], ["yes", "yes", "no", "yes"]
    wanted = {
        "f1_macro": metrics.f1_score(rights, texts, labels=["no", "yes"], average="macro"),
        "matthews_corrcoef": metrics.matthews_corrcoef(rights, texts),
        "balanced_accuracy": metrics.balanced_accuracy_score(rights, texts),
        "sklearn:accuracy": 0.5,
        "cohen_kappa_score": metrics.cohen_kappa_score(rights, texts),
        "hamming_loss": -0.5,
        "-sklearn:accuracy": -0.5,
    }
    for name, value in wanted.items():
        metric = library_metric(name)
        assert metric(given, right) == pytest.approx(value), name
        assert metric.name == ("-hamming_loss" if name == "hamming_loss" else name)
    assert "did you mean 'matthews_corrcoef'" in unknown_metric("mathews_corrcoef")
    with pytest.raises(InputError, match=r"does not compare texts.*f1_macro is for classes"):
        library_metric("sklearn:f1")
    for name in ("neg_log_loss", "mean_squared_error", "confusion_matrix"):
        with pytest.raises(InputError, match="does not compare texts"):
            library_metric(name)


@pytest.mark.parametrize("several", [True, False])
def test_a_metric_of_ones_own_folder(tmp_path, monkeypatch, several):
    pytest.importorskip("evaluate")
    monkeypatch.chdir(tmp_path)
    form = "datasets.Sequence(text)" if several else "text"
    folder = tmp_path / f"mine{several}"
    folder.mkdir()
    (folder / f"mine{several}.py").write_text(METRIC.replace("REFERENCES", form))
    name = f"evaluate:./mine{several}"
    metric = library_metric(f"{name}#hits")
    assert metric(["a", "c"], [("b", "a"), ("b",)]) == 0.5
    assert library_metric(f"-{name}#hits")(["a"], [("a",)]) == -1.0
    with pytest.raises(InputError, match=r"gives several numbers.*add one of #hits, #count"):
        library_metric(name)
    with pytest.raises(InputError, match="no such folder or file"):
        library_metric("evaluate:./other")


def test_a_metric_of_the_hub_that_cannot_be_had(monkeypatch):
    pytest.importorskip("evaluate")
    from zopeft import hub

    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(InputError, match=r"the hub can.t be reached.*got .rouge"):
        library_metric("evaluate:rouge", trust=True)
    assert "rouge" not in sys.modules
