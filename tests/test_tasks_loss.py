"""Losses: against the definition, one option at a time, for every kind of adapter."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from zopeft.errors import InputError
from zopeft.models import attach, load_model
from zopeft.tasks import Collator, TaskDataset, load_task, option_scores, task_loss
from zopeft.tasks.encoding import encode, start_tokens
from zopeft.tasks.logits import narrow_logits
from zopeft.tasks.loss import answer_losses
from zopeft.tasks.task import Example

COPA = [
    {
        "premise": "The man fell.",
        "choice1": "He got up.",
        "choice2": "The very old dog sang a song.",
        "question": "effect",
        "label": 0,
    },
    {
        "premise": "She smiled.",
        "choice1": "She was sad and alone.",
        "choice2": "I waved.",
        "question": "cause",
        "label": 1,
    },
]
SQUAD = [
    {"title": "T", "context": "Amy ran far away.", "question": "Who ran?", "answers": {"text": [a]}}
    for a in ("Amy", "Amy and all of her friends")
]


@pytest.fixture(scope="module")
def loaded():
    """The embedded model: trained, so its losses are far apart."""
    return load_model()


def merging_tokenizer():
    """A byte-level tokenizer whose tokens run across the border of prompt and answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["q?\nYes", "a?\nYes", "it was great"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def one_at_a_time(model, encoded):
    """The definition: every option alone, mean log-probability, cross-entropy."""
    losses = []
    for one in encoded:
        scores = []
        for prompt, option in zip(one.prompts, one.options, strict=True):
            logits = model(torch.tensor([prompt + option])).logits.log_softmax(-1)[0]
            logits = logits[-len(prompt + option) :]
            at = range(len(prompt) - 1, len(prompt) + len(option) - 1)
            scores.append(torch.stack([logits[p, t] for p, t in zip(at, option, strict=True)]))
        means = torch.stack([score.mean() for score in scores])
        losses.append(cross_entropy(means[None], torch.tensor([one.label])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("peft", [None, "lora", "prefix", "prompt"])
def test_choice_loss_is_the_definition(peft):
    model, tokenizer = load_model()
    model = attach(model, peft) if peft else model
    data = TaskDataset(load_task("copa"), COPA, tokenizer, 64, loss="choice")
    batch = Collator(tokenizer)(list(data))
    assert batch["input_ids"].shape[0] == 4
    assert batch["num_options"].tolist() == [2, 2]
    assert batch["option_label"].tolist() == [0, 1]
    with torch.no_grad():
        loss = task_loss(model, batch)
        assert loss.dtype == torch.float32
        assert loss.dim() == 0
        torch.testing.assert_close(loss, one_at_a_time(model, data), atol=1e-5, rtol=0)


@pytest.mark.parametrize("peft", [None, "lora", "prefix", "prompt"])
def test_answer_loss_is_the_models_own(peft):
    model, tokenizer = load_model()
    model = attach(model, peft) if peft else model
    data = TaskDataset(load_task("squad"), SQUAD, tokenizer, 128)
    batch = Collator(tokenizer)(list(data))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    with torch.no_grad():
        torch.testing.assert_close(task_loss(model, batch), model(**batch).loss, atol=1e-5, rtol=0)
        losses, rows = answer_losses(model, batch)
    assert losses.numel() == (batch["labels"] != -100).sum()
    assert rows.unique().tolist() == [0, 1]


def test_one_row_scores_single_token_options(loaded):
    model, tokenizer = loaded
    start = start_tokens(tokenizer)
    ids = tokenizer("once upon a time").input_ids[len(start) :]
    from zopeft.tasks.encoding import Encoded

    both = [Encoded((start + tuple(ids),) * 3, ((11,), (300,), (77,)), label) for label in (2, 0)]
    batch = Collator(tokenizer)(both)
    assert batch["input_ids"].shape[0] == 2
    assert batch["predictors"].numel() == 2
    assert batch["labels"][:, -1].tolist() == [77, 11]
    with torch.no_grad():
        expected = one_at_a_time(model, both)
        torch.testing.assert_close(task_loss(model, batch), expected, atol=1e-5, rtol=0)


def test_options_of_different_number(loaded):
    model, tokenizer = loaded
    from zopeft.tasks.encoding import Encoded

    prompt = (1, 281, 306)
    mixed = [
        Encoded((prompt,) * 3, ((11, 12), (300,), (77, 5, 6)), 1),
        Encoded((prompt,) * 2, ((11,), (300,)), 0),
        Encoded((prompt,) * 2, ((9, 9, 9), (8,)), 0),
    ]
    batch = Collator(tokenizer)(mixed)
    with torch.no_grad():
        scores = option_scores(model, batch)
        assert scores.shape == (3, 3)
        assert torch.isneginf(scores).tolist() == [
            [False, False, False],
            [False, False, True],
            [False, False, True],
        ]
        expected = one_at_a_time(model, mixed)
        torch.testing.assert_close(task_loss(model, batch), expected, atol=1e-5, rtol=0)


def test_no_logits_of_all_places(loaded):
    model, tokenizer = loaded
    data = TaskDataset(load_task("squad"), SQUAD, tokenizer, 128)
    batch = Collator(tokenizer)(list(data))
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    with torch.no_grad():
        task_loss(model, batch)
    hook.remove()
    assert seen == [(1, int((batch["labels"] != -100).sum()), model.config.vocab_size)]
    assert not model.lm_head._forward_pre_hooks


def test_hook_is_removed_after_an_exception(loaded):
    model, _ = loaded
    batch = {"input_ids": torch.tensor([[9999]]), "attention_mask": torch.tensor([[1]])}
    with pytest.raises(IndexError):
        narrow_logits(model, batch, torch.tensor([0]))
    assert not model.lm_head._forward_pre_hooks


def test_left_padding_keeps_its_mask(loaded):
    model, _ = loaded
    text = [1, 281, 306, 414, 13]
    plain = {"input_ids": torch.tensor([text]), "attention_mask": torch.ones(1, 5).long()}
    padded = {
        "input_ids": torch.tensor([[2, 2, *text]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]]),
    }
    with torch.no_grad():
        one = narrow_logits(model, plain, torch.tensor([4]))
        two = narrow_logits(model, padded, torch.tensor([6]))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_gradients_flow(loaded):
    model, tokenizer = loaded
    for name, rows, loss in (("copa", COPA, "choice"), ("squad", SQUAD, "answer")):
        data = TaskDataset(load_task(name), rows, tokenizer, 64, loss=loss)
        task_loss(model, Collator(tokenizer)(list(data))).backward()
        grads = [parameter.grad for parameter in model.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
        model.zero_grad()


def test_half_precision_gives_a_float32_loss():
    model, tokenizer = load_model(dtype="bfloat16")
    batch = Collator(tokenizer)(list(TaskDataset(load_task("squad"), SQUAD, tokenizer, 64)))
    with torch.no_grad():
        assert task_loss(model, batch).dtype == torch.float32


def test_truncation_keeps_start_and_answer(loaded):
    _, tokenizer = loaded
    example = Example("word " * 100 + "Answer:", answers=(" a man\n",))
    (whole,) = encode(tokenizer, [example], "answer", 1000)
    (cut,) = encode(tokenizer, [example], "answer", 20)
    assert len(cut) == 20
    assert cut.options == whole.options
    assert cut.prompts[0][0] == tokenizer.bos_token_id
    assert cut.prompts[0][1:] == whole.prompts[0][-len(cut.prompts[0]) + 1 :]
    answer = len(whole.options[0])
    (tight,) = encode(tokenizer, [example], "answer", answer + 1)
    assert tight.prompts == ((tokenizer.bos_token_id,),)
    with pytest.raises(InputError, match=r"row 1: the answer has .* does not fit"):
        encode(tokenizer, [example], "answer", answer)


def test_the_longest_option_decides_where_a_prompt_is_cut(loaded):
    """All options see the same end of the prompt, and none is longer than allowed."""
    _, tokenizer = loaded
    options = (" yes.", " The very old dog sang a song and went home.")
    example = Example("word " * 100 + "Answer:", options, 0)
    (whole,) = encode(tokenizer, [example], "choice", 1000)
    (cut,) = encode(tokenizer, [example], "choice", 24)
    short, long = map(len, whole.options)
    assert short < long < 24
    assert cut.options == whole.options
    assert len(cut) == 24
    assert [len(prompt) for prompt in cut.prompts] == [24 - long] * 2
    assert {len(text) for text in cut.texts} == {24 - long + short, 24}
    assert cut.prompts[0][1:] == whole.prompts[0][-(24 - long) + 1 :]
    (tight,) = encode(tokenizer, [example], "choice", long + 1)
    assert tight.prompts == ((tokenizer.bos_token_id,),) * 2
    with pytest.raises(InputError, match=rf"row 1: the answer has {long} tokens and does not fit"):
        encode(tokenizer, [example], "choice", long)


def test_tokens_across_the_border_belong_to_the_answer():
    tokenizer = merging_tokenizer()
    assert start_tokens(tokenizer) == ()
    example = Example("tell: q?\n", ("Yes", "No"), 0)
    (one,) = encode(tokenizer, [example], "choice", 64)
    for prompt, option, text in zip(one.prompts, one.options, ("Yes", "No"), strict=True):
        assert option
        assert tokenizer.decode(prompt + option) == "tell: q?\n" + text
    # "q?\nYes" is one token, so the border lies before it.
    assert tokenizer.decode(one.prompts[0]) != "tell: q?\n"


def test_pad_is_known_by_the_mask():
    tokenizer = merging_tokenizer()
    assert tokenizer.pad_token_id is None
    examples = [Example("a b c d", answers=(" x<end>\n",)), Example("a", answers=(" x\n",))]
    batch = Collator(tokenizer)(encode(tokenizer, examples, "answer", 64))
    end = tokenizer.eos_token_id
    assert batch["input_ids"][1, -1] == end
    assert batch["attention_mask"][1, -1] == 0
    assert (batch["labels"][0] == end).any()  # an end token that is taught stays taught
    assert tokenizer.pad_token_id is None


def test_answers_always_have_tokens():
    tokenizer = merging_tokenizer()
    with pytest.raises(InputError, match=r"without tokens|empty prompt"):
        encode(tokenizer, [Example("", answers=("",))], "answer", 64)
    with pytest.raises(InputError, match="empty prompt"):
        encode(tokenizer, [Example("", answers=("x",))], "answer", 64)


def test_dataset_errors(loaded):
    _, tokenizer = loaded
    with pytest.raises(InputError, match="squad has no choices"):
        TaskDataset(load_task("squad"), SQUAD, tokenizer, 64, loss="choice")
    with pytest.raises(InputError, match="'choice' or 'answer'"):
        TaskDataset(load_task("squad"), SQUAD, tokenizer, 64, loss="lm")
    with pytest.raises(InputError, match="copa, row 2: column 'label'"):
        TaskDataset(load_task("copa"), [COPA[0], COPA[1] | {"label": 7}], tokenizer, 64)


def test_answer_loss_on_a_choice_task_takes_the_right_option(loaded):
    _, tokenizer = loaded
    data = TaskDataset(load_task("copa"), COPA, tokenizer, 64)
    assert data.loss == "answer"
    batch = Collator(tokenizer)(list(data))
    taught = [[t for t in row if t != -100] for row in batch["labels"].tolist()]
    assert tokenizer.decode(taught[0]).strip() == "he got up."
    assert tokenizer.decode(taught[1]).strip() == "I waved."


def test_batches_survive_a_worker(loaded):
    import pickle

    _, tokenizer = loaded
    data = TaskDataset(load_task("copa"), COPA, tokenizer, 64, loss="choice")
    assert pickle.loads(pickle.dumps(data[0])) == data[0]
    assert json.dumps(COPA)
