"""Templates: what a tokenizer puts around a text, before every prompt and behind none."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    XGLMTokenizer,
)

from zopeft.tasks import Collator, load_task, option_scores
from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.encoding import encode, encode_prompts, start_tokens
from zopeft.tasks.evaluation import evaluate
from zopeft.tasks.generation import generate
from zopeft.tasks.task import Example
from zopeft.tasks.template import Template

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "<sop>"]
LETTERS = [chr(code) for code in range(32, 127)]
VOCABULARY = {text: number for number, text in enumerate([*SPECIAL, *LETTERS, "\n"])}
PAD, UNK, BOS, EOS, MASK, SOP = range(6)

# template -> ids before, ids behind
TEMPLATES = {
    "$A": ((), ()),
    "<s> $A": ((BOS,), ()),
    "<s> $A </s>": ((BOS,), (EOS,)),
    "$A </s>": ((), (EOS,)),
    "</s> $A": ((EOS,), ()),
    "<mask> <sop> $A": ((MASK, SOP), ()),
    "$A <mask> </s>": ((), (MASK, EOS)),
}


def fast(template):
    """A tokenizer of single letters with a template of the tokenizers library."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(text, VOCABULARY[text]) for text in SPECIAL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<mask>", "<sop>"],
    )


class Slow(PreTrainedTokenizer):
    """The same letters in Python, with a start of two tokens of its own."""

    def __init__(self):
        super().__init__(pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")

    @property
    def vocab_size(self):
        return len(VOCABULARY)

    def get_vocab(self):
        return dict(VOCABULARY)

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return VOCABULARY.get(token, UNK)

    def _convert_id_to_token(self, index):
        return list(VOCABULARY)[index]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [MASK, SOP, *token_ids_0, EOS]


def every():
    return {
        **{name: (fast(name), *around) for name, around in TEMPLATES.items()},
        "slow": (Slow(), (MASK, SOP), (EOS,)),
    }


EVERY = every()


@pytest.mark.parametrize("name", EVERY)
def test_the_template_is_the_tokenizers_own(name):
    tokenizer, before, after = EVERY[name]
    found = Template.of(tokenizer)
    assert (found.before, found.after) == (before, after)
    for text in ("it was a film", "a", "</s> a"):
        plain = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer(text).input_ids == [*found.before, *plain, *found.after]
    assert start_tokens(tokenizer) == before


def test_a_start_that_is_the_end_token_and_a_space_of_its_own():
    words = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581film", "\u2581the"]
    tokenizer = XGLMTokenizer(vocab=[(word, -float(rank)) for rank, word in enumerate(words)])
    own = tokenizer("the film").input_ids
    assert own == [2, 6, 5]
    assert start_tokens(tokenizer) == (2,)
    assert encode_prompts(tokenizer, ["the film"], 8) == [(2, 6, 5)]


def test_a_tokenizer_that_knows_none_of_the_texts_to_try():
    backend = Tokenizer(models.WordLevel({"<s>": 0, "x": 1, "y": 2}, unk_token="none"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.model = models.BPE({"<s>": 0, "x": 1, "y": 2}, [])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert tokenizer("a").input_ids == [0]
    assert encode_prompts(tokenizer, ["x y"], 8) == [(0, 1, 2)]
    (one,) = encode(tokenizer, [Example("x", answers=(" y\n",))], "answer", 8)
    assert (one.prompts, one.options) == (((0, 1),), ((2,),))


@pytest.mark.parametrize("name", EVERY)
def test_rows_begin_as_the_tokenizer_begins_and_never_end(name):
    tokenizer, before, after = EVERY[name]
    plain = len(before)
    choice = Example("it was", (" bad", " great"), 1)
    answer = Example("who ran? ", answers=("Amy\n",))
    (both,) = encode(tokenizer, [choice], "choice", 64)
    (one,) = encode(tokenizer, [answer], "answer", 64)
    for prompt, option, text in (
        *zip(both.prompts, both.options, (" bad", " great"), strict=True),
        (one.prompts[0], one.options[0], "Amy\n"),
    ):
        source = choice.prompt if text.startswith(" ") else answer.prompt.rstrip(" ")
        given = tokenizer(source).input_ids
        assert list(prompt) == given[: len(given) - len(after)]
        assert not set(range(6)) & set((prompt + option)[plain:])
        assert tokenizer.decode(option).replace(" ", "") == text.replace(" ", "")
    labels = Collator(tokenizer)([one])["labels"][0]
    assert labels[labels != IGNORED].tolist() == list(one.options[0])
    assert encode_prompts(tokenizer, [choice.prompt], 64) == [both.prompts[0]]


@pytest.mark.parametrize("name", ["<mask> <sop> $A", "slow"])
def test_a_cut_prompt_keeps_the_whole_start(name):
    tokenizer, before, _ = EVERY[name]
    example = Example("x" * 90 + "yz", answers=(" ok\n",))
    (cut,) = encode(tokenizer, [example], "answer", 12)
    assert len(cut) == 12
    assert cut.prompts[0][:2] == before
    assert cut.prompts[0][-2:] == (VOCABULARY["y"], VOCABULARY["z"])
    assert encode_prompts(tokenizer, [example.prompt], 4) == [(*before, *cut.prompts[0][-2:])]


@pytest.mark.parametrize("name", ["<s> $A", "<s> $A </s>", "<mask> <sop> $A"])
def test_a_text_that_spells_its_start_out_has_it_once(name):
    tokenizer, before, _ = EVERY[name]
    plain, written = "it was", tokenizer.decode(before).replace(" ", "") + "it was"
    assert tokenizer(written, add_special_tokens=False).input_ids[: len(before)] == list(before)
    one, two = encode_prompts(tokenizer, [plain, written], 64)
    assert one == two
    examples = [Example(text, answers=(" ok\n",)) for text in (plain, written)]
    one, two = encode(tokenizer, examples, "answer", 64)
    assert one == two
    # Half of a start is the text's own.
    (other,) = encode_prompts(tokenizer, ["<sop>it was"], 64)
    assert other == (*before, SOP, *one.prompts[0][len(before) :])


def letters_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["<mask> <sop> $A", "$A </s>", "slow"])
def test_options_are_scored_behind_the_tokenizers_own_start(name):
    """Against the definition, with ids that the tokenizer made itself."""
    tokenizer, _, after = EVERY[name]
    model = letters_model()
    example = Example("it was", (" bad", " great"), 1)
    (one,) = encode(tokenizer, [example], "choice", 64)
    with torch.no_grad():
        scores = option_scores(model, Collator(tokenizer)([one]))[0]
        for option, score in zip(example.choices, scores, strict=True):
            ids = tokenizer(example.prompt + option).input_ids
            ids = ids[: len(ids) - len(after)]
            size = len(tokenizer(option, add_special_tokens=False).input_ids)
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            tokens = torch.tensor(ids[-size:])
            expected = logits[-size - 1 : -1].gather(1, tokens[:, None]).mean()
            torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["<mask> <sop> $A", "$A </s>"])
def test_generation_begins_as_the_tokenizer_begins(name):
    tokenizer, _, after = EVERY[name]
    model = letters_model()
    text = "it was"
    ids = tokenizer(text).input_ids
    ids = ids[: len(ids) - len(after)]
    given = torch.tensor([ids])
    for _ in range(6):
        with torch.no_grad():
            logits = model(given).logits[0, -1]
        given = torch.cat([given, logits.argmax().view(1, 1)], 1)
    expected = tokenizer.decode(given[0, len(ids) :], skip_special_tokens=True)
    found = generate(model, tokenizer, encode_prompts(tokenizer, [text], 64), 6)
    assert found == [expected.split("\n")[0].strip()]
    assert found[0]


def test_evaluation_goes_by_the_start():
    """Two tokenizers that differ by their start alone give a model other losses."""
    model, task = letters_model(), load_task("sst2")
    rows = [{"sentence": "a fine film", "label": 1}, {"sentence": "so bad", "label": 0}]
    losses = {
        name: evaluate(model, EVERY[name][0], task, rows, 2, 64)["loss"]
        for name in ("$A", "$A </s>", "<s> $A", "<s> $A </s>", "<mask> <sop> $A", "slow")
    }
    assert losses["$A"] == pytest.approx(losses["$A </s>"], abs=1e-6)
    assert losses["<s> $A"] == pytest.approx(losses["<s> $A </s>"], abs=1e-6)
    assert losses["slow"] == pytest.approx(losses["<mask> <sop> $A"], abs=1e-6)
    assert len({round(loss, 3) for loss in losses.values()}) == 3
