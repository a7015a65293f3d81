"""The own loop of generation: transformers' answers for every family, with less work."""

import pytest
import torch
from test_packed_families import FAMILIES, OTHERS, numbers
from transformers import AutoModelForCausalLM

from zopeft.engine.carrier import UnstackableError
from zopeft.models import attach
from zopeft.tasks import generation
from zopeft.tasks.decoding import Decoder
from zopeft.tasks.generation import continue_all, decodes, generate
from zopeft.tasks.objectives.sampling import Draw, Sampling, row_numbers


class Words:
    """A tokenizer of numbers, of which every seventh ends a line."""

    pad_token_id, eos_token_id = 0, 2

    def decode(self, ids, skip_special_tokens=False):
        return " ".join("\n" if one % 7 == 0 else str(one) for one in ids)


BEGINNING = numbers(9, 17)
PROMPTS = {
    "mixed": [numbers(k, size) for k, size in enumerate((3, 20, 9, 14, 5, 2))],
    "shared": [BEGINNING + numbers(k, size) for k, size in enumerate((3, 9, 1, 4))],
    "same": [numbers(3, 8)] * 3,
}
LIBRARYS = ("mamba", "lfm2")


def random_model(name, space):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config({**FAMILIES, **OTHERS}[name]()).eval()
    if space == "lora":
        model = attach(model, "lora")
        for own, parameter in model.named_parameters():
            if "lora_B" in own:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("space", ["full", "lora"])
@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_answers_are_those_of_transformers(name, space, monkeypatch):
    model = random_model(name, space)
    found = {kind: generate(model, Words(), some, 12) for kind, some in PROMPTS.items()}
    assert decodes(model, PROMPTS["mixed"][0], 0) is (name not in LIBRARYS)
    monkeypatch.setattr(generation, "decodes", lambda *args: False)
    assert found == {kind: generate(model, Words(), some, 12) for kind, some in PROMPTS.items()}
    assert any(any(answers) for answers in found.values())


class Calls:
    """Notes the shape of every batch that a model is given, and its places with a token."""

    def __init__(self, model):
        self.seen = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        self.seen.append((*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1]))


def test_nothing_is_computed_twice():
    model = random_model("llama", "full")
    calls = Calls(model)
    some = PROMPTS["shared"]
    lengths = [len(one) - len(BEGINNING) for one in some]
    made = Decoder(model, 0)(some * 2, 6, lambda ids: ids[-1] % 3 == 0)[0]
    assert made[:4] == made[4:]
    assert calls.seen[0][:2] == (1, len(BEGINNING))
    assert sum(rows for rows, tokens, _ in calls.seen if 1 < tokens < 17) <= len(some)
    steps = [rows for rows, tokens, _ in calls.seen[1:] if tokens == 1 and rows > 1]
    sizes = [len(one) for one in made]
    assert max(lengths) > 1 and len(set(sizes)) > 1
    # Rows that have ended leave: there are never fewer than are open, and soon not all.
    opened = [sum(size > place for size in sizes) for place in range(1, max(sizes))]
    assert len(steps) == len(opened) and all(a >= b for a, b in zip(steps, opened, strict=True))
    assert sum(steps) < 8 * len(steps)


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_copies_and_sampled_tokens_are_as_those_of_one(kind):
    model, prompts = random_model("llama", "full"), PROMPTS[kind]
    how = Sampling(temperature=1.0, top_k=20, top_p=0.9)

    def drawn(some, numbers, copies=1):
        pick = Draw(how, 7, numbers)
        return continue_all(model, Words(), some, 9, "\n", [2], pick, copies, True)

    whole = row_numbers(prompts)
    assert len(set(whole)) == len(prompts)
    ((one,), (heard,)) = drawn(prompts, whole)
    both, also = drawn(prompts, whole, 2)
    assert both == [one, one]
    # By itself a row gets the same tokens: they hang on the row, not on its neighbours.
    for n, (ids, logs) in enumerate(zip(one, heard, strict=True)):
        ((alone,), (own,)) = drawn([prompts[n]], [whole[n]])
        assert alone == [ids] and len(logs) == len(ids)
        torch.testing.assert_close(torch.tensor(own[0]), torch.tensor(logs), atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompts[n], *ids]])).logits[0, len(prompts[n]) - 1 : -1]
        bare = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logs), bare, atol=1e-4, rtol=1e-4)
    for first, second in zip(*also, strict=True):
        assert first == pytest.approx(second, abs=1e-4)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -8.0]]).expand(4000, -1)
    numbers = row_numbers([[n] for n in range(4000)])
    drawn = Draw(Sampling(1.0, 4), 3, numbers)(logits, range(4000), 0)
    share = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(share, logits[0].softmax(0), atol=0.03, rtol=0.0)
    nucleus = Draw(Sampling(1.0, 4, 0.6), 3, numbers)(logits, range(4000), 0)
    assert set(nucleus.tolist()) == {0}
    assert set(Draw(Sampling(1.0, 2), 3, numbers)(logits, range(4000), 0).tolist()) == {0, 1}


def test_a_model_that_was_not_tried_does_not_run_in_copies():
    model = random_model("llama", "full")
    with pytest.raises(UnstackableError):
        continue_all(model, Words(), PROMPTS["mixed"], 3, None, [2], copies=2)
    ((hybrid,), _) = continue_all(
        random_model("mamba", "full"), Words(), PROMPTS["mixed"], 3, None, []
    )
    assert [len(one) for one in hybrid] == [3] * 6
