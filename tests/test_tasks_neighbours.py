"""Neighbours: a row's answer and score are those that it has alone, whatever the model."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from zopeft.embedded import MODEL_DIR
from zopeft.models import attach
from zopeft.tasks import Collator, TaskDataset, evaluate, load_rows, load_task, task_loss
from zopeft.tasks.encoding import encode_prompts
from zopeft.tasks.evaluation import mean_loss
from zopeft.tasks.generation import generate
from zopeft.tasks.logits import try_padding
from zopeft.tasks.loss import answer_losses
from zopeft.tasks.neighbours import apart, by_length, try_out

SIZES = {
    "vocab_size": 1474,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
WINDOW = {"sliding_window": 16}
OWN = {
    "llama": {},
    "mistral": WINDOW,
    "mamba": {"state_size": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64},
    "rwkv": {"attention_hidden_size": 32},
    "cpmant": {
        "dim_head": 8,
        "dim_ff": 48,
        "prompt_types": 32,
        "prompt_length": 4,
        "segment_types": 4,
    },
    "prophetnet": {
        "num_decoder_layers": 2,
        "num_decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "is_decoder": True,
    },
}
TEXTS = ["Who came?", "Anna saw a red door . " * 3 + "It was", "The old man", "Tom has a hat ."]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def random_model(kind, peft=None):
    sizes = {**SIZES, **OWN[kind]}
    if "num_decoder_layers" in sizes:
        del sizes["num_hidden_layers"]
    config = CONFIG_MAPPING[kind](**sizes)
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        if peft is not None:
            model = attach(model, peft)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


class Calls:
    """Rows and tokens of every forward of a model."""

    def __init__(self, model):
        self.seen = []
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, model, args, kwargs):
        self.seen.append(tuple(kwargs["input_ids"].shape))


@pytest.mark.parametrize(
    ("kind", "peft", "mixes"),
    [
        ("llama", None, False),
        ("llama", "prefix", False),
        ("llama", "prompt", False),
        ("mistral", None, False),
        ("mistral", "prefix", True),
        ("mamba", None, False),
        ("recurrent_gemma", None, True),
        ("rwkv", None, True),
    ],
)
def test_an_answer_does_not_depend_on_the_batch(kind, peft, mixes, tokenizer):
    model = random_model(kind, peft)
    prompts = encode_prompts(tokenizer, TEXTS, 64)
    longest = max(map(len, prompts))
    assert len({len(prompt) for prompt in prompts}) >= 3
    together = generate(model, tokenizer, prompts, 6)
    assert together == [generate(model, tokenizer, [prompt], 6)[0] for prompt in prompts]
    assert any(together)
    assert apart(model, "left", longest + 5) is mixes


def test_a_clean_model_is_tried_once_and_then_given_whole_batches(tokenizer):
    model = random_model("llama")
    prompts = encode_prompts(tokenizer, TEXTS, 64)
    longest = max(map(len, prompts))
    calls = Calls(model)
    generate(model, tokenizer, [prompts[0], prompts[0]], 3)
    own = len(prompts[0])
    # The cache is tried out, by both loops; then one row of two that are the same is read.
    assert calls.seen[0] == (3, own) and (1, own) in calls.seen
    calls.seen.clear()
    first = generate(model, tokenizer, prompts, 3)
    reach = longest + 2
    assert calls.seen[:4] == [(2, reach), (2, 1), (1, reach // 4), (1, 1)]
    calls.seen.clear()
    assert generate(model, tokenizer, prompts, 3) == first
    # Prompts of like length are read together, and all are continued so.
    assert sum(rows for rows, length in calls.seen if length > 1) == len(prompts)
    assert {rows for rows, length in calls.seen if length == 1} == {len(prompts)}


def test_an_adapter_is_another_model(tokenizer):
    model = random_model("mistral")
    prompts = encode_prompts(tokenizer, TEXTS, 64)
    generate(model, tokenizer, prompts, 3)
    longest = max(map(len, prompts))
    assert longest > WINDOW["sliding_window"]
    assert not apart(model, "left", longest)
    tuned = attach(model, "prefix")
    generate(tuned, tokenizer, prompts, 3)
    assert apart(tuned, "left", longest + 2)
    # What fits into the window with the prefix before it may be padded still.
    assert apart(tuned, "left", 8)
    short = encode_prompts(tokenizer, ["Who came?", "Who"], 64)
    assert len(short[1]) < len(short[0]) <= 8
    calls = Calls(model)
    generate(tuned, tokenizer, short, 3)
    assert (2, len(short[0])) in calls.seen
    assert not apart(tuned, "left", len(short[0]) + 2)


@pytest.mark.parametrize(
    ("kind", "mixes"), [("llama", False), ("cpmant", True), ("prophetnet", True)]
)
@pytest.mark.parametrize("name", ["copa", "squad"])
def test_a_score_does_not_depend_on_the_batch(kind, mixes, name, tokenizer):
    model = random_model(kind)
    task = load_task(name)
    rows = load_rows(task, "validation", embedded=True, limit=5)
    one, many = (mean_loss(model, tokenizer, task, rows, size, 128) for size in (1, 5))
    assert many == pytest.approx(one, rel=1e-5)
    if name == "copa":
        one, many = (evaluate(model, tokenizer, task, rows, size, 128) for size in (1, 5))
        assert many == pytest.approx(one, rel=1e-5)
    data = TaskDataset(task, rows, tokenizer, 128).encoded
    assert apart(model, "right", max(map(len, data))) is mixes


def test_a_training_loss_is_that_of_rows_alone(tokenizer):
    """Stacked or not, with gradients or without."""
    task = load_task("copa")
    rows = load_rows(task, "train", embedded=True, limit=5)
    model = random_model("cpmant")
    for loss in ("choice", "answer"):
        data = TaskDataset(task, rows, tokenizer, 128, loss=loss)
        collate = Collator(tokenizer)
        batch = collate(list(data))
        assert not batch["attention_mask"].all()
        try_padding(model, data.encoded, collate.pad)
        whole = task_loss(model, batch)
        whole.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        with torch.no_grad():
            if loss == "choice":
                alone = torch.stack([_choice_loss(model, one) for one in data]).mean()
            else:
                alone = torch.cat([answer_losses(model, collate([one]))[0] for one in data]).mean()
            torch.testing.assert_close(whole.detach(), alone, atol=1e-5, rtol=0)
            stacked = task_loss.stacked(model, batch, 3)
        torch.testing.assert_close(stacked, alone.expand(3), atol=1e-5, rtol=0)


def _choice_loss(model, one):
    scores = []
    for text, option in zip(one.texts, one.options, strict=True):
        logits = model(torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1)
        tokens = torch.tensor(option)
        scores.append(logits[-len(option) - 1 : -1].gather(1, tokens[:, None]).mean())
    return torch.nn.functional.cross_entropy(torch.stack(scores)[None], torch.tensor([one.label]))


def test_eight_bit_rounding_is_no_neighbour(tokenizer):
    pytest.importorskip("bitsandbytes")
    from zopeft.models import load_model

    model, tokenizer = load_model(load_in_8bit=True, device="cpu")
    data = TaskDataset(
        load_task("copa"),
        load_rows(load_task("copa"), "train", embedded=True, limit=5),
        tokenizer,
        128,
    )
    try_padding(model, data.encoded, 0)
    assert not apart(model, "right", 128)


def test_what_is_known_is_known_by_length():
    model = torch.nn.Linear(1, 1)
    tried = []

    def run(rows):
        """A model that mixes from 20 tokens on."""
        tried.append([len(row) for row in rows])
        padded = max(map(len, rows)) >= 20
        return [torch.tensor([[1.0, 2.0 + padded, 4.0]] * len(rows))]

    assert not try_out(model, "left", [7], 10, run)
    assert tried == [[2, 10], [2]]
    assert not try_out(model, "left", [7], 9, run)
    assert len(tried) == 2
    assert try_out(model, "left", [7, 8], 40, run)
    assert tried[2:] == [[10, 40], [10]]
    assert try_out(model, "left", [7], 41, run)
    assert len(tried) == 4
    assert try_out(model, "left", [7], 20, run)
    assert not try_out(model, "left", [7], 19, run)
    assert [apart(model, "left", length) for length in (19, 20, 41)] == [False, True, True]
    assert try_out(model, "right", [7], 41, run)
    assert apart(model, "right", 3)  # Nothing was seen to be clean.
    assert not try_out(model, "right", [7], 3, run)
    assert [apart(model, "right", length) for length in (3, 4)] == [False, True]
    assert by_length([3, 1, 3, 2]) == [[0, 2], [3], [1]]


def test_a_diverged_model_is_not_taken_for_a_mixing_one():
    model = torch.nn.Linear(1, 1)
    assert not try_out(model, "left", [7], 10, lambda rows: [torch.full((len(rows), 3), torch.nan)])


def test_what_follows_a_tie_that_rounding_decides_is_not_compared():
    model = torch.nn.Linear(1, 1)

    def run(rows):
        """Two best tokens but for the last bits; what comes after them differs."""
        other = len(rows) > 1
        first = torch.tensor([[3.0, 3.0 + (1e-6 if other else -1e-6), 0.0]] * len(rows))
        return [first, torch.tensor([[1.0, 2.0 + other, 4.0]] * len(rows))]

    assert not try_out(model, "left", [7], 10, run)
    assert try_out(model, "left", [7], 20, lambda rows: run(rows)[1:])
