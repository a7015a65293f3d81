"""Objectives: scores of what a model generates, from the command line and from Python."""

import json
from pathlib import Path

import pytest
import rewards as own
import torch
from rewards import PROMPTS as ROWS

import zopeft
from zopeft.errors import InputError, RunError
from zopeft.models import attach, load_model
from zopeft.tasks import load_task
from zopeft.tasks.objectives import OBJECTIVES
from zopeft.tasks.objectives.metrics import METRICS, contains, rouge_l, similarity
from zopeft.tasks.objectives.objective import metric_of
from zopeft.tasks.objectives.rewards import load_function, load_rewards

FILE = Path(own.__file__)
ADAPTER = "adapter_model.safetensors"


def test_the_registries_list_what_there_is(zopeft_command):
    listed = [row["name"] for row in zopeft_command.json("list", "objectives")]
    assert listed == list(OBJECTIVES) == ["answer", "choice", "metric", "reward"]
    assert [kind.scores for kind in OBJECTIVES.values()] == [False, False, True, True]
    assert {row["name"] for row in zopeft_command.json("list", "metrics")} == set(METRICS)


def test_metrics_by_hand():
    assert contains("it was the Red house.", ["red house"]) == 1.0
    assert contains("predatory", ["red"]) == 0.0
    # a b c d against b d e: two in common, 2 * 2 / 7.
    assert rouge_l("x b c d", ["b d e"]) == pytest.approx(4 / 7)
    assert rouge_l("", ["a word"]) == 0.0
    assert similarity("abcd", ["abcd"]) == 1.0 > similarity("abcd", ["abxx"]) > 0.0
    assert metric_of(load_task("squad"), None) == "f1"
    assert metric_of(load_task("squad"), "rouge_l") == "rouge_l"
    with pytest.raises(InputError, match="sst2 has options, got 'f1'"):
        metric_of(load_task("sst2"), "f1")


def test_a_reward_is_called_as_trl_calls_it(tiny_tuned):
    model, tokenizer = tiny_tuned
    seen = {}

    def spy(prompts, completions, completion_ids, **columns):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, **columns)
        return torch.arange(float(len(completions)))

    objective = zopeft.Objective(tokenizer, spy, max_new_tokens=5)
    loss = objective.closure(model, ROWS)()
    assert float(loss) == -1.5
    assert seen["prompts"] == [row["prompt"] for row in ROWS] and seen["goal"] == [0, 1, 2, 3]
    trls = {"trainer_state", "log_extra", "log_metric"}
    assert set(seen) == {"prompts", "completions", "ids", "goal", *trls}
    assert seen["trainer_state"].global_step == 0 and seen["log_metric"]("a", 1.0) is None
    assert seen["completions"] == tokenizer.batch_decode(seen["ids"], skip_special_tokens=True)
    chat = [{"prompt": [{"role": "user", "content": "Who?"}]}]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    zopeft.Objective(tokenizer, spy, max_new_tokens=3).closure(model, chat)()
    assert seen["prompts"] == [chat[0]["prompt"]]
    assert [one[0]["role"] for one in seen["completions"]] == ["assistant"]


def test_several_rewards_are_weighted_and_may_not_apply():
    both = load_rewards([f"{FILE}:length", f"{FILE}:of_goal", "rewards:later"], [1.0, 2.0, 0.5])
    from zopeft.tasks.objectives.prompted import Prompted

    rows = [Prompted((1,), "p", (), {"prompt": "p", "goal": goal}, "row") for goal in (1, 2)]
    assert both(rows, ["banana", "banana"], [[1], [1]]) == [0.6 + 6.0 + 0.5, 0.6 + 0.5]
    alone = load_rewards([f"{FILE}:of_goal"])
    with pytest.raises(Exception, match="of_goal: returned None for row, and no other"):
        alone(rows, ["a", "a"], [[1], [1]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_probes_of_a_step_see_the_same_random_numbers(tiny_tuned, temperature):
    model, tokenizer = tiny_tuned
    given = {"temperature": temperature, "samples": 2 if temperature else 1, "max_new_tokens": 6}
    objective = zopeft.Objective(tokenizer, own.length, **given)
    found = {}
    for probes in ("separate", "stacked"):
        torch.manual_seed(0)
        optimizer = zopeft.MeZO(zopeft.discover(model), lr=0.0, eps=2.0, probes=probes)
        objective._steps = 0
        for _ in range(3):
            closure = objective.closure(model, ROWS)
            assert float(closure()) == float(closure())
            optimizer.step(closure)
            found.setdefault(probes, []).append(optimizer.last_record.losses)
    assert found["separate"] == found["stacked"]
    assert len(set(found["separate"])) > 1
    if temperature:
        numbers = {float(objective.closure(model, ROWS)()) for _ in range(5)}
        assert len(numbers) > 1


def test_a_step_without_a_score_is_skipped_and_the_run_ends_after_several(tiny_tuned):
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(tokenizer, own.raising, max_new_tokens=2)
    before = [p.clone() for p in model.parameters()]
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1.0, max_bad_steps=2)
    optimizer.step(objective.closure(model, ROWS))
    assert optimizer.skipped == 1
    with pytest.raises(RunError, match=r"no score for 2 steps in a row \(raising: raised ValueErr"):
        optimizer.step(objective.closure(model, ROWS))
    assert all(map(torch.equal, before, model.parameters()))


def test_the_trainer_takes_an_objective(tiny_tuned, tmp_path):
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(tokenizer, own.length, max_new_tokens=3, temperature=1.0)
    args = zopeft.ZOTrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=1e-3,
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
    )
    data = objective.data(ROWS)
    trainer = zopeft.ZOTrainer(model, args, objective.collator, data, loss_function=objective)
    trainer.train()
    assert objective.step == 1 and trainer.method.steps == 2
    assert trainer.method.last_record.loss < 0 < objective.evaluate(model, ROWS)


def run(command, model, *words):
    fixed = ("--lr", "1e-3", "--batch-size", 2, "objective.max_new_tokens=4")
    return command.json("tune", model, *words, *fixed)


def test_a_reward_from_the_command_line_resumes_bit_for_bit(
    zopeft_command, tiny_model, prompts, tmp_path
):
    reward = f"{FILE}:length"
    words = ("--data", prompts, "--reward", reward, "objective.temperature=1")
    whole = run(zopeft_command, tiny_model, *words, "--steps", 5, "--out", tmp_path / "whole")
    assert whole["score"] == "reward" and whole["score_last"] > 0
    assert whole["metrics"]["after"]["reward"] > 0 and "loss" not in whole["metrics"]["after"]
    assert (tmp_path / "whole" / "score.png").is_file()
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert any("score" in json.loads(line) for line in lines)
    given = ("eval", "--adapter", tmp_path / "whole", "--data", prompts, "objective.temperature=1")
    told = zopeft_command.json(*given, "objective.max_new_tokens=4", "--reward", reward)
    assert told["metrics"]["reward"] > 0 and told["metrics"]["examples"] == 8
    assert "alone have nothing to teach" in zopeft_command.refused("eval", "--data", prompts)
    out = tmp_path / "parts"
    run(zopeft_command, tiny_model, *words, "--steps", 3, "--out", out)
    line = zopeft_command.refused("tune", "--resume", "--out", out, "--steps", 5)
    assert f"not run by a record's word; give them again: --reward {reward}" in line
    zopeft_command.json("tune", "--resume", "--out", out, "--steps", 5, "--reward", reward)
    assert (out / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    # A replay generates nothing.
    from zopeft.journal import Journal, rebuild

    found, _ = load_model(str(tiny_model))
    blocks = zopeft.discover(attach(found, "lora"))
    own.CALLS.clear()
    rebuild(Journal.open(out / "journal.bin"), zopeft.MeZO(blocks, lr=1e-3))
    from safetensors.torch import load_file

    saved = load_file(out / ADAPTER)
    mine = {b.name.replace(".default", ""): b.parameter for b in blocks}
    assert saved and all(torch.equal(saved[name], mine[name]) for name in saved)
    assert not own.CALLS


def test_a_score_of_nothing_is_no_negative():
    from zopeft.jobs.following import _negative
    from zopeft.report.summary import score_ends

    found = [*score_ends([0.0, 0.0], "f1").values(), _negative(0.0)]
    assert [str(one) for one in found] == ["f1", "0.0", "0.0", "0.0"]


def test_the_tasks_own_metric(zopeft_command, tiny_model, tiny_data, tmp_path):
    words = ("--task", "sst2", "--data", tiny_data, "--objective", "metric", "--steps", 2)
    found = zopeft_command.json(
        "tune", tiny_model, *words, "--lr", 1e-3, "--batch-size", 4, "--out", tmp_path / "choice"
    )
    assert found["score"] == "accuracy" and 0 <= found["score_last"] <= 1
    assert found["layout"] in ("joined", "packed")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--reward", f"{FILE}:raising"),
            "raising: raised ValueError (no such thing); correct the function, line 25 of rewards",
        ),
        (
            ("--reward", f"{FILE}:needing"),
            "needing: takes 'answer', and the rows have no such column, got ",
        ),
        (
            ("--reward", f"{FILE}:short"),
            "short: returned 1 values for 2 completions; return a list",
        ),
        (("--reward", f"{FILE}:nothing"), "must return a list, got 'NoneType'"),
        (("--reward", f"{FILE}:nan"), "must return finite numbers, "),
        (("--reward", f"{FILE}:words"), "line 1, got 'good'; return a number, or None"),
        (("--reward", f"{FILE}:lenght"), "no function 'lenght' in"),
        (("--reward", "nowhere.py:f"), "--reward: no such file, got 'nowhere.py'; check the path"),
        (("--reward", "no.such.module:f"), "--reward: no such module (No module named 'no')"),
        (("--reward", "length"), "--reward: names no function, got 'length'; write FILE.py:FUNC"),
        (("--objective", "reward"), "reward needs a function; give --reward FILE.py:FUNCTION"),
        (("--objective", "metric"), "rows of prompts alone have no answers, got 'metric'"),
        (("--objective", "revard"), "unknown objective, got 'revard'; did you mean 'reward'?"),
        ((), "rows of prompts alone have nothing to teach; give --reward"),
        (("--reward", f"{FILE}:length", "objective.samples=2"), "are all the same, got 2; give"),
        (("--reward", f"{FILE}:length", "objective.weights=[1,2]"), "must be as many as the 1 rew"),
        (("--reward", f"{FILE}:length", "objective.max_new_tokens=600"), "leaves no room for a"),
        (("--reward", f"{FILE}:length", "--method", "fo_sgd"), "needs gradients, and scores"),
        (("--reward", f"{FILE}:length", "--method", "forward_gradient"), "needs slopes, and scor"),
        (
            ("--reward", f"{FILE}:length", "objective.shaping=ranks", "--lr", "auto"),
            "no rule for a",
        ),
        (("objective.temperature=1",), "temperature: goes with --objective metric or reward"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_is_written(
    words, line, zopeft_command, tiny_model, prompts, tmp_path
):
    out = tmp_path / "out"
    fixed = ("--steps", 2, "--out", out)
    assert line in zopeft_command.refused("tune", tiny_model, "--data", prompts, *fixed, *words)
    assert not out.exists()


def test_code_in_a_models_folder_is_not_run(zopeft_command, tiny_model, prompts, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "reward.py").write_text("raise SystemExit('it was run')")
    words = ("--data", prompts, "--reward", f"{folder}/reward.py:f")
    assert "in the model's folder is not run" in zopeft_command.refused("tune", folder, *words)


def test_a_reward_that_breaks_ends_the_run_and_keeps_it(
    zopeft_command, tiny_model, prompts, tmp_path
):
    own.CALLS.clear()
    out = tmp_path / "out"
    words = ("--data", prompts, "--reward", "rewards:breaking", "--steps", 9, "--lr", "1e-3")
    bad = ("method.max_bad_steps=2", "training.eval_before=false", "objective.max_new_tokens=2")
    line = zopeft_command.refused(
        "tune", tiny_model, *words, *bad, "--batch-size", 2, "--out", out, code=1
    )
    assert "objective: no score for 2 steps in a row (breaking: raised KeyError ('gone')" in line
    assert (out / ADAPTER).is_file() and (out / "journal.bin").is_file()


def test_functions_are_loaded_from_modules_and_files():
    assert load_function("math:sqrt")(4.0) == 2.0
    assert load_function(f"{FILE}:length")(["ab"]) == [0.2]


def test_a_model_that_has_diverged_has_no_score(tiny_tuned):
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(tokenizer, own.length, max_new_tokens=2)
    closure = objective.closure(model, ROWS)
    assert closure().isfinite()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    assert closure().isnan() and "logits are not finite" in objective.problem
    with pytest.raises(InputError, match="logits are not finite"):
        objective.evaluate(model, ROWS)


def test_the_anchor_is_the_divergence_by_hand(tiny_tuned):
    model, tokenizer = tiny_tuned
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    seen = []

    def nothing(completion_ids, **columns):
        seen[:] = completion_ids
        return [0.0] * len(completion_ids)

    given = {"max_new_tokens": 6, "temperature": 1.0, "anchor": 0.5}
    objective = zopeft.Objective(tokenizer, nothing, **given)
    term = float(objective.closure(model, ROWS)())
    numbers = []
    for one, ids in zip(objective.data(ROWS), seen, strict=True):
        text = torch.tensor([[*one.ids, *ids]])
        with torch.no_grad():
            here = model(text).logits.log_softmax(-1)
            with model.disable_adapter():
                below = model(text).logits.log_softmax(-1)
        places = torch.arange(len(one.ids) - 1, text.shape[1] - 1)
        logs = (below - here)[0, places, torch.tensor(ids)]
        numbers += (logs.exp() - logs - 1.0).tolist()
    assert term == pytest.approx(0.5 * sum(numbers) / len(numbers), rel=1e-3) and term > 1e-3
    with pytest.raises(InputError, match="there is no adapter; use --lora"):
        objective.anchor.check(model.get_base_model())


def test_trls_own_rewards_work(tiny_tuned):
    rewards = pytest.importorskip("trl.rewards", reason="trl is not installed")
    model, tokenizer = tiny_tuned
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    objective = zopeft.Objective(tokenizer, rewards.think_format_reward, max_new_tokens=3)
    assert objective.evaluate(model, [{"prompt": [{"role": "user", "content": "Who?"}]}]) == 0.0


def test_an_interrupt_in_the_middle_of_a_step_loses_nothing(
    zopeft_command, tiny_model, prompts, tmp_path, monkeypatch
):
    reward = ("--reward", f"{FILE}:stopping")
    words = ("tune", tiny_model, "--data", prompts, *reward, "--steps", 5, "--batch-size", 2)
    words += ("--lr", "1e-3", "--eps", 0.1, "training.eval_before=false")
    words += ("objective.temperature=1", "objective.max_new_tokens=3", "method.probes=separate")
    out = tmp_path / "out"
    # The first two completions are scored by themselves; then there are two probes a step.
    monkeypatch.setenv("STOP_AT", "7")
    line = zopeft_command.refused(*words, "--out", out, code=1)
    assert "interrupted; 2 steps are kept" in line
    monkeypatch.delenv("STOP_AT")
    zopeft_command.json("tune", "--resume", "--out", out, *reward)
    zopeft_command.json(*words, "--out", tmp_path / "whole")
    assert (out / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
