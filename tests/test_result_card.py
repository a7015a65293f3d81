"""Model cards of results: what a run says of itself, and what it must not say."""

import pytest
from huggingface_hub import ModelCard
from training_run import tiny_model as random_model
from training_run import trainer, with_lora

from zopeft.errors import InputError
from zopeft.jobs.push import push
from zopeft.jobs.result_card import _base, _hub_id
from zopeft.models import resolve


@pytest.mark.parametrize(("space", "library"), [((), "peft"), (("--full",), "transformers")])
def test_a_result_has_a_card_of_its_own(
    zopeft_command, tiny_model, tiny_data, tmp_path, space, library
):
    out = tmp_path / "mine"
    words = ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--batch-size", 2)
    summary = zopeft_command.json(*words, *space, "--steps", 2, "--lr", "1e-3", "--out", out)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == library
    assert {"zopeft", "zeroth-order", "mezo"} <= set(card.data.tags)
    after = summary["metrics"]["after"]
    told = {result.metric_type: result.metric_value for result in card.data.eval_results}
    numbers = {name: one for name, one in after.items() if not isinstance(one, dict)}
    assert told == pytest.approx({n: one for n, one in numbers.items() if n != "examples"})
    assert set(told) >= {"accuracy", "acc_norm", "calibrated_accuracy", "loss"}
    assert "More Information Needed" not in card.text
    # Folders of this machine are nobody's business.
    assert str(tiny_model.parent) not in card.content and card.data.base_model is None
    before = summary["metrics"]["before"]
    row = f"| validation loss | {before['loss']:.4g} | {after['loss']:.4g} |"
    assert row in card.text and "| steps | 2 |" in card.text and "| seed | 0 |" in card.text
    assert ("AutoPeftModelForCausalLM" in card.text) is (library == "peft")
    code = card.text.split("```python\n")[1].split("```")[0].replace('"mine"', repr(str(out)))
    given = {}
    exec(code, given)
    batch = given["tokenizer"]("a film", return_tensors="pt")
    assert given["model"](**batch).logits.isfinite().all()


def test_the_base_model_is_named_as_the_hub_knows_it(tmp_path):
    found = resolve("organisation/name")
    assert _hub_id(found) == "organisation/name"
    assert _base(found) == "`organisation/name`"
    assert _hub_id(resolve(None)) is None and "embedded" in _base(resolve(None))


def test_a_run_that_diverged_says_so_and_is_not_pushed(
    zopeft_command, tiny_model, tiny_data, tmp_path
):
    out = tmp_path / "out"
    words = ("tune", tiny_model, "--task", "sst2", "--data", tiny_data, "--batch-size", 2)
    code, _, _ = zopeft_command(*words, "--full", "--steps", 2, "--lr", "1e9", "--out", out)
    assert code == 1
    assert "**The run diverged: the validation loss" in (out / "README.md").read_text()
    with pytest.raises(InputError, match="its run diverged"):
        push(str(out), "organisation/name")


@pytest.mark.parametrize("rate", [1e-3, "auto"])
def test_a_trainers_card_names_the_method(tmp_path, rate):
    made = trainer(with_lora(random_model()), tmp_path, learning_rate=rate, max_steps=2)
    made.train()
    made.create_model_card(model_name="mine")
    text = (tmp_path / "README.md").read_text()
    assert "adam" not in text.lower() and "optimizer_args" not in text
    assert "- optimizer: mezo of zopeft, zeroth-order: forward passes only, eps 0.01" in text
    begun = (
        "0.001\n"
        if rate == 1e-3
        else f"auto, {made.method.rate.began:.4g} at the start (signal share"
    )
    assert f"- learning_rate: {begun}" in text


def test_the_card_of_a_first_order_baseline(tmp_path):
    made = trainer(random_model(), tmp_path, method="fo_sgd", max_steps=1)
    made.train()
    made.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "- optimizer: fo_sgd of zopeft\n" in text and "adam" not in text.lower()
