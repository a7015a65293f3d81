"""Chats: what is taught is what transformers masks and what the template ends a turn with."""

import pytest
import torch
from chat_templates import ENDS, FAMILIES, chat_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from zopeft.errors import InputError
from zopeft.tasks import Collator, task_loss
from zopeft.tasks.chat import PLAIN, Chat
from zopeft.tasks.conversation import conversation
from zopeft.tasks.marking import mark
from zopeft.tasks.own_encoding import OwnEncoder, encode_all, encode_openings
from zopeft.tasks.task import RowError

CHATS = [
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "And what does the cat say?\nTell me."},
        {"role": "assistant", "content": "Miaow, it says.\nOften."},
    ],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello, you.  "},
        {"role": "user", "content": "This turn has no answer."},
    ],
    [{"role": "user", "content": "x" * 40}, {"role": "assistant", "content": "A film."}],
]


def place(index):
    return f"row {index + 1}"


def encoded(tokenizer, chats, max_length=512):
    examples = [conversation(one, "messages") for one in chats]
    return encode_all(tokenizer, examples, "answer", max_length, place)[0]


def taught_text(tokenizer, one):
    marks = one.taught or (True,) * len(one.options[0])
    return tokenizer.decode([t for t, m in zip(one.options[0], marks, strict=True) if m])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_transformers_own_on_its_mask(family):
    tokenizer = chat_tokenizer(family)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
        )
    ).eval()
    # A trailing turn without an answer is read by nobody.
    texts = [
        tokenizer.apply_chat_template(
            [
                chat[: max(k for k, m in enumerate(chat) if m["role"] == "assistant") + 1]
                for chat in CHATS
            ][i],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        for i in range(len(CHATS))
    ]
    width = max(len(one["input_ids"]) for one in texts)
    ids = torch.tensor(
        [[*one["input_ids"], *[0] * (width - len(one["input_ids"]))] for one in texts]
    )
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(texts):
        mask = torch.tensor(one["assistant_masks"], dtype=torch.bool)
        assert 0 < int(mask.sum()) < len(mask)
        labels[row, : len(mask)][mask] = ids[row, : len(mask)][mask]
    attention = torch.tensor(
        [[1] * len(one["input_ids"]) + [0] * (width - len(one["input_ids"])) for one in texts]
    )
    batch = Collator(tokenizer)(encoded(tokenizer, CHATS))
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        ours = task_loss(model, batch)
        same = model(**batch).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(same, theirs, rtol=1e-5, atol=1e-6)
    kept = batch["input_ids"].shape[1]
    assert torch.equal(batch["labels"], labels[:, :kept])
    assert bool((labels[:, kept:] == -100).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_are_taught_with_the_token_that_ends_them(family):
    tokenizer = chat_tokenizer(family)
    one, two, _ = encoded(tokenizer, CHATS)
    text, end = taught_text(tokenizer, one), ENDS[family]
    assert text.count(end) == 2
    assert text.replace(" ", "") == f"Paris{end}Miaow,itsays.\nOften.{end}"
    assert tokenizer.convert_ids_to_tokens(one.options[0][-1]) == end
    assert "no answer" not in tokenizer.decode(two.prompts[0] + two.options[0])
    assert "one word" in tokenizer.decode(one.prompts[0])


@pytest.mark.parametrize("family", [*FAMILIES, "plain"])
def test_generation_begins_where_the_last_taught_turn_does(family):
    tokenizer = chat_tokenizer(None if family == "plain" else family)
    tokenizer.chat_template = tokenizer.chat_template or PLAIN
    examples = [conversation(one, "messages") for one in CHATS]
    openings = encode_openings(tokenizer, examples, 512, place)
    for opening, one in zip(
        openings, encode_all(tokenizer, examples, "answer", 512, place)[0], strict=True
    ):
        whole = one.prompts[0] + one.options[0]
        assert whole[: len(opening)] == opening
        marks = [False] * len(one.prompts[0]) + list(one.taught or [True] * len(one.options[0]))
        assert all(marks[len(opening) :])
        assert not marks[len(opening) - 1]


def test_templates_that_end_the_last_turn_in_another_way_and_drop_thoughts():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|return|>", "<think>", "</think>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% if '</think>' in m.content and not loop.last %}"
        "{{ m.content.split('</think>')[1] }}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|return|>' if loop.last else '<|im_end|>' }}{% else %}"
        "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>hm</think>first"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>well</think>last"},
    ]
    (one,) = encoded(tokenizer, [chat])
    assert taught_text(tokenizer, one) == "first<|im_end|><think>well</think>last<|return|>"


def test_a_template_without_an_end_is_given_the_end_token():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (one,) = encoded(tokenizer, CHATS[:1])
    assert taught_text(tokenizer, one) == " Paris\n Miaow, it says.\nOften.\n</s>"


def test_long_chats_lose_the_beginning_of_the_prompt_and_the_end_of_the_answer():
    tokenizer = chat_tokenizer("llama3")
    chat = [
        {"role": "user", "content": "the film was good " * 30},
        {"role": "assistant", "content": "yes"},
    ]
    (whole,) = encoded(tokenizer, [chat])
    (short,) = encoded(tokenizer, [chat], 40)
    assert (len(whole.prompts[0]) > 100, whole.cut) == (True, 0)
    assert len(short) == 40 and short.cut == len(whole) - 40
    assert short.options == whole.options
    assert short.prompts[0][0] == tokenizer.bos_token_id
    assert short.prompts[0][1:] == whole.prompts[0][-len(short.prompts[0]) + 1 :]
    chat[1]["content"] = "the cat sat on the mat " * 30
    (long,) = encoded(tokenizer, [chat], 41)
    assert (len(long), len(long.options[0]), len(long.prompts[0])) == (41, 20, 21)
    with pytest.raises(InputError, match="no room"):
        encoded(tokenizer, [chat], 2)


def test_what_a_slow_tokenizer_marks_is_the_same():
    tokenizer = chat_tokenizer("chatml")
    fast = encoded(tokenizer, CHATS)

    class Slow:
        is_fast = False

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    assert encoded(Slow(tokenizer), CHATS) == fast


def test_a_token_across_a_border_is_taught():
    tokenizer = chat_tokenizer()
    text = "the terrible film was good"
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = found.offset_mapping
    long = [k for k, (begin, end) in enumerate(places) if end - begin > 2]
    assert len(long) > 2
    # From inside one token to inside another.
    first, last = long[0], long[-1]
    ids, marks = mark(tokenizer, text, [(places[first][1] - 1, places[last][0] + 1)])
    assert ids == found.input_ids
    assert marks == [first <= k <= last for k in range(len(ids))]


def test_turns_as_people_have_them():
    usual = conversation(CHATS[2], "messages").messages
    sharegpt = [{"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "A film."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}, CHATS[2][1]]
    arrow = [{**turn, "tool_calls": None} for turn in CHATS[2]]
    import json

    for same in (sharegpt, parts, arrow, json.dumps(CHATS[2])):
        assert conversation(same, "messages").messages == usual
    system = conversation(CHATS[2], "messages", system="Be kind.")
    assert system.messages[0] == {"role": "system", "content": "Be kind."}
    own = conversation(CHATS[0], "messages", system="Be kind.")
    assert own.messages[0]["content"] == "You answer in one word."


USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([USER], "no turn of the assistant to learn from, got user"),
        ([], "no turn of the assistant to learn from, got no turn at all"),
        (
            [USER, {"role": "assistant", "content": " "}],
            "column 'messages': the assistant says nothing, its content is empty",
        ),
        ([BOT, USER], "turn 1: the assistant's turn must follow a user's, got assistant, user"),
        ([SYSTEM, BOT], "turn 2: the assistant's turn must follow a user's"),
        ([USER, BOT, BOT], "turn 3: two of the assistant's turns in a row"),
        ([USER, SYSTEM, BOT], "turn 2: a system turn must stand first"),
        ([{"role": "gpt", "content": "a"}], "turn 1: unknown role, got 'gpt'; known: system"),
        ([{"content": "a"}], "turn 1: unknown role, got None"),
        ([USER, {"role": "assistant"}], "turn 2: its content must be text, got None"),
        (["a"], "turn 1 must have a role and a content, got 'a'"),
        ("hello", "must be a list of turns"),
        (None, "must be a list of turns"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image'"),
    ],
)
def test_faulty_conversations(value, line):
    with pytest.raises(RowError, match="column 'messages'") as caught:
        conversation(value, "messages")
    assert line in str(caught.value)


def test_a_missing_template_and_one_that_refuses():
    with pytest.raises(InputError, match=r"no chat template; give data.template=plain"):
        encoded(chat_tokenizer(), CHATS)
    with pytest.raises(InputError, match=r"row 2: the chat template refuses .*must alternate"):
        encoded(chat_tokenizer("gemma"), [CHATS[0], [USER, USER, BOT]])
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(InputError, match="row 1: the chat template leaves out turn 3"):
        encoded(tokenizer, CHATS)
    tokenizer.chat_template = "a\n{{ 'b"
    with pytest.raises(InputError, match=r"data\.template: the template is no Jinja \(line 2: "):
        encoded(tokenizer, CHATS)
    assert Chat(chat_tokenizer("gemma")).added[0] == "<start_of_turn>"
    assert OwnEncoder(tokenizer, 9).chat is None
