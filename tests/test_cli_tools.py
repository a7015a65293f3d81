"""Doctor, merge, chat and push: what is done around a run."""

import json

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import zopeft.jobs.doctor as doctor_job
from zopeft import hub
from zopeft.cli.main import main
from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError, RunError
from zopeft.jobs.chat import Chat, Sampling
from zopeft.jobs.push import push, sent

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA that changes what the embedded model says."""
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder


def logits(model):
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_a_merged_folder_is_a_plain_model_that_says_what_the_adapter_does(
    adapter, model, tmp_path, capsys
):
    out = tmp_path / "merged"
    assert main(["merge", str(adapter), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] < 1e-3
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL_DIR), adapter)
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert not (out / "adapter_config.json").exists()
    assert (logits(tuned.eval()) - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(logits(plain.eval()), logits(tuned), atol=1e-3, rtol=1e-3)
    assert main(["merge", str(adapter), "--out", str(out)]) == 2  # It holds files.


def test_a_merge_that_gives_another_model_keeps_nothing(adapter, tmp_path, monkeypatch, capsys):
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    out = tmp_path / "merged"
    assert main(["merge", str(adapter), "--out", str(out)]) == 1
    assert "not the adapted one" in capsys.readouterr().err
    assert not list(out.glob("*.safetensors"))


def test_a_prefix_cannot_be_merged(tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    tuned = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    tuned.save_pretrained(tmp_path / "prefix")
    out = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "prefix"), "--out", str(out)]) == 2
    assert "prefix tuning" in capsys.readouterr().err
    assert not out.exists()


def test_a_chat_says_what_generate_does(model, tokenizer):
    chat = Chat(model, tokenizer, sampling=Sampling(tokens=8))
    ids = tokenizer("Tom has a hat . The", return_tensors="pt").input_ids
    whole = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    wanted = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    pieces = list(chat.ask("Tom has a hat . The"))
    assert len(pieces) > 1
    assert "".join(pieces) == wanted
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_a_template_gets_the_whole_conversation(model, tokenizer):
    tokenizer.chat_template = CHATML
    chat = Chat(model, tokenizer, "Be brief.", Sampling(tokens=4))
    seen = []
    inner = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda turns, **kwargs: (
        seen.append(list(turns)),
        inner(turns, **kwargs),
    )[1]
    first = "".join(chat.ask("Who came?"))
    list(chat.ask("And then?"))
    assert [message["content"] for message in seen[1]] == [
        "Be brief.",
        "Who came?",
        first,
        "And then?",
    ]


def test_sampled_answers_are_repeated_by_seed_and_leave_torchs_stream_alone(model, tokenizer):
    def said(seed):
        sampling = Sampling(tokens=12, temperature=1.5, seed=seed)
        return "".join(Chat(model, tokenizer, sampling=sampling).ask("Anna saw"))

    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert said(1) == said(1) != said(2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda m, t: Chat(m, t, "Be brief."), "no chat template"),
        (lambda m, t: Sampling(tokens=0), "--max-new-tokens"),
        (lambda m, t: Sampling(temperature=-1), "--temperature"),
        (lambda m, t: list(Chat(m, t).ask("a " * 4000)), "more than the model's"),
    ],
)
def test_what_cannot_be_said_is_one_line(make, line, model, tokenizer):
    with pytest.raises(InputError, match=line):
        make(model, tokenizer)


def test_generation_that_breaks_is_told(model, tokenizer, monkeypatch):
    def breaks(**kwargs):
        raise ValueError("no such cache")

    monkeypatch.setattr(model, "generate", breaks)
    with pytest.raises(RunError, match="no such cache"):
        list(Chat(model, tokenizer).ask("Anna"))


def test_chat_of_an_adapters_folder_answers_with_its_base(adapter, capsys):
    words = ["chat", str(adapter), "Tom has", "--max-new-tokens", "4", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == f"embedded + {adapter}"


def test_the_doctor_looks_at_this_machine(capsys):
    # What a machine lacks, a full disk or a compiler, is no fault of the doctor's.
    code = main(["doctor", "--json"])
    told = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert code == any(check["state"] == "broken" for check in told.values())
    assert told["kernels"]["state"] in ("ok", "warning")
    assert told["a step"]["state"] == "ok"
    assert "hub" in told and "torch" in told


def test_the_doctor_tells_what_is_broken(monkeypatch, capsys):
    def look():
        raise OSError("no such device")
        yield

    monkeypatch.setattr(doctor_job, "_LOOKS", (look,))
    assert main(["doctor"]) == 1
    assert "no such device" in capsys.readouterr().out


def test_a_push_is_refused_before_anything_is_sent(adapter, tmp_path, monkeypatch, capsys):
    assert main(["push", str(tmp_path), "me/mine"]) == 2
    assert "no adapter" in capsys.readouterr().err
    with pytest.raises(InputError, match="organisation/name"):
        push(str(adapter), "mine")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(InputError, match="can't be reached"):
        push(str(adapter), "me/mine")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "run.json").write_text('{"status": "interrupted"}')
    with pytest.raises(InputError, match="--resume"):
        push(str(tmp_path), "me/mine")


def test_a_push_sends_the_result_and_not_the_machines_record(adapter, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            calls.append((name, private))

        def upload_folder(self, **kwargs):
            calls.append(kwargs)
            return "https://there"

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    for name in ("adapter_config.json", "run.json", "journal.bin"):
        (tmp_path / name).write_text('{"status": "done"}')
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "x.bin").write_text("x")
    told = push(str(tmp_path), "me/mine")
    assert calls[0] == ("me/mine", True)
    assert {path.name for path in sent(tmp_path)} == {"adapter_config.json", "journal.bin"}
    assert told["files"] == 2 and told["kind"] == "adapter"
