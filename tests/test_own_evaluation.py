"""Scores of own data: perplexity of what is taught, answers of several lines to their end."""

import math

import pytest
import torch
from chat_templates import chat_tokenizer
from test_own_kinds import made
from transformers import LlamaConfig, LlamaForCausalLM

from zopeft.tasks import Collator, TaskDataset, evaluate, load_task
from zopeft.tasks.endings import Endings
from zopeft.tasks.evaluation import mean_loss
from zopeft.tasks.generation import generate
from zopeft.tasks.library_loop import Stopping

ANSWERS = ["one\ntwo\n\nthree", "the cat\nsat", "a", "good\nbad\nworse"]
ASKED = ["Count:", "Where?", "Say:", "How is it?"]


def tiny(tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def learned(tokenizer, task, rows):
    """A small model that knows the rows by heart."""
    model = tiny(tokenizer)
    batch = Collator(tokenizer)(TaskDataset(task, rows, tokenizer, 128).encoded)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    return model.eval()


CASES = {
    "completion": ("chatml", {}),
    "stopped": ("chatml", {"stop": "###"}),
    "chat": ("chatml", {}),
    "gemma": ("gemma", {}),
    "instruction": (None, {}),
}


def rows_of(case):
    pairs = list(zip(ASKED, ANSWERS, strict=True))
    if case in ("chat", "gemma"):
        roles = ("user", "assistant")
        turns = [[{"role": r, "content": c} for r, c in zip(roles, p, strict=True)] for p in pairs]
        return [{"messages": one} for one in turns]
    if case == "instruction":
        return [{"instruction": asked, "output": answer} for asked, answer in pairs]
    return [{"prompt": asked, "completion": f" {answer}"} for asked, answer in pairs]


@pytest.mark.parametrize("case", CASES)
def test_answers_of_several_lines_are_generated_to_their_end(case, tmp_path):
    family, wishes = CASES[case]
    tokenizer, rows = chat_tokenizer(family), rows_of(case)
    task = made(tmp_path / "a.jsonl", rows, metric="f1", max_new_tokens=24, **wishes)
    model = learned(tokenizer, task, rows)
    scores = evaluate(model, tokenizer, task, rows, batch_size=3, max_length=128)
    assert (scores["f1"], scores["exact_match"], scores["examples"]) == (1.0, 1.0, 4)
    # Nothing is said after an answer: that would count against F1.
    plain = made(tmp_path / "a.jsonl", rows, **wishes)
    loss = evaluate(model, tokenizer, plain, rows, batch_size=3, max_length=128)
    assert set(loss) == {"loss", "perplexity", "examples"}
    assert loss["loss"] == pytest.approx(scores["loss"])


def test_perplexity_is_that_of_the_taught_tokens(tmp_path):
    tokenizer = chat_tokenizer("chatml")
    model, rows = tiny(tokenizer).eval(), rows_of("chat")
    task = made(tmp_path / "a.jsonl", rows)
    batch = Collator(tokenizer)(TaskDataset(task, rows, tokenizer, 128).encoded)
    with torch.no_grad():
        whole = float(model(**batch).loss)
    for size in (1, 3):
        scores = evaluate(model, tokenizer, task, rows, batch_size=size)
        assert scores["loss"] == pytest.approx(whole, rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(whole), rel=1e-4)
        assert mean_loss(model, tokenizer, task, rows, size) == pytest.approx(whole, rel=1e-5)


def test_running_text_is_scored_in_pieces(tmp_path):
    tokenizer = chat_tokenizer()
    rows = [{"text": "the cat sat on the mat " * 12}, {"text": "a film"}]
    task = made(tmp_path / "a.jsonl", rows)
    seen = []
    scores = evaluate(
        tiny(tokenizer), tokenizer, task, rows, 2, 32, progress=lambda *done: seen.append(done)
    )
    pieces = len(TaskDataset(task, rows, tokenizer, 32))
    assert (scores["examples"], seen[-1]) == (2, (pieces, pieces)) and pieces > 3


def test_a_stop_text_counts_in_new_tokens_alone():
    tokenizer = chat_tokenizer()
    ids = tokenizer("say ##", add_special_tokens=False).input_ids
    more = tokenizer("#", add_special_tokens=False).input_ids
    stop = Stopping(Endings(tokenizer, [], "##"))
    assert stop(torch.tensor([[*ids, *more]]), None).tolist() == [False]
    assert stop(torch.tensor([[*ids, *more, *more]]), None).tolist() == [True]
    model = tiny(tokenizer)
    lines = generate(model, tokenizer, [ids], 6, None)
    assert generate(model, tokenizer, [ids], 6, lines[0][1:3])[0] == lines[0][:1].strip()


def test_a_task_file_says_what_ends_an_answer(tmp_path):
    path = tmp_path / "task.yaml"
    text = 'name: a\nprompt: "{q}"\nanswer: a\n'
    for line, taught, ends in (
        ("", " x\ny\n", False),
        ("stop: '###'", " x\ny###", False),
        ("stop: null", " x\ny", True),
    ):
        path.write_text(text + line)
        example = load_task(path).example({"q": "Q", "a": "x\ny"})
        assert (example.answers, example.ends) == ((taught,), ends)
    assert load_task(path).stop is None
    for line in ("stop: ''", "stop: 3"):
        path.write_text(text + line)
        with pytest.raises(ValueError, match="stop: text or null is needed"):
            load_task(path)
