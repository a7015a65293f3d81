"""Values of other kinds than ours, where a file or a message is whole: refused in one line."""

import gzip
import json
import zipfile
from http.client import HTTPException
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from training_run import tiny_model
from transformers import AutoTokenizer

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError, RunError
from zopeft.executors import vllm_server
from zopeft.federated import Answer, Federation, Participant
from zopeft.jobs import served
from zopeft.jobs.bench.bench import render
from zopeft.jobs.claim import CLAIM, Claim
from zopeft.jobs.metrics import Metrics
from zopeft.journal import Journal, rebuild
from zopeft.journal.header import header_of
from zopeft.models import adapters
from zopeft.models.checkpoint import weight_files
from zopeft.recipe.load import check_recipe, load_recipe
from zopeft.tasks import row_files, unpacking
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.encoding_cache import EncodingCache
from zopeft.tasks.files import read_file
from zopeft.training.checkpoints import read_seal, seal
from zopeft.training.loading import check_scheduler, read_state, refused


def made(lr=1e-3):
    model = tiny_model().eval()
    ids = torch.arange(12).view(2, 6) + 2
    loss = zopeft.BatchLoss(model, {"input_ids": ids, "labels": ids})
    return zopeft.MeZO(zopeft.discover(model), lr=lr, seed=3), loss


@pytest.mark.parametrize(
    "line",
    [
        {"made": [5, None, "\0", {}]},
        {"made": 5},
        {"host": 1, "pid": "x", "born": None, "since": ""},
        {"host": "elsewhere", "pid": 10**30, "born": None, "since": ""},
    ],
)
def test_a_claim_of_odd_values_is_no_claim(line, tmp_path, monkeypatch):
    (tmp_path / CLAIM).write_text(json.dumps(line))
    Claim(tmp_path).release()
    assert not (tmp_path / CLAIM).exists()


def test_a_claim_takes_no_other_folder_away(tmp_path):
    other, own = tmp_path / "other", tmp_path / "own"
    other.mkdir()
    own.mkdir()
    (own / CLAIM).write_text(json.dumps({"made": [str(other), str(own)]}))
    Claim(own).release()
    assert other.is_dir()
    assert not own.exists()


@pytest.mark.parametrize("value", ["x", [], True, 10**400, None])
def test_seconds_that_are_no_number_count_as_none(value, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5, "seconds": value}))
    assert Metrics(tmp_path, resume=True).seconds == 0.0


def kept(tmp_path):
    cache = EncodingCache(None, [])
    cache.file = tmp_path / "kept.npz"
    cache.write([Encoded(((1, 2),), ((3,),))], [0])
    assert cache.read() is not None
    return cache


def test_kept_encodings_that_claim_more_than_memory_are_made_anew(tmp_path):
    cache = kept(tmp_path)
    with zipfile.ZipFile(cache.file) as old:
        parts = {entry.filename: old.read(entry) for entry in old.infolist()}
    head = parts["tokens.npy"]
    shape, most = b"(3,), }", b"(%d,), }" % 2**58
    at = head.index(shape)
    fill = b" " * (len(head[:128]) - len(head[:at] + most) - 1) + b"\n"
    parts["tokens.npy"] = head[:at] + most + fill + head[128:]
    with zipfile.ZipFile(cache.file, "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)
    assert cache.read() is None


@pytest.mark.parametrize("offset", [6, 8])
def test_kept_encodings_packed_in_another_way_are_made_anew(offset, tmp_path):
    cache = kept(tmp_path)
    content = bytearray(cache.file.read_bytes())
    # In the directory at the end: flags (a password), way of packing.
    content[content.index(b"PK\1\2") + offset + 2] = 1 if offset == 6 else 99
    cache.file.write_bytes(content)
    assert cache.read() is None


ROW = {
    "key": "k", "model": "m", "task": "sst2", "space": "lora", "settings": "s", "entry": "mezo",
    "name": "mezo", "seed": 1, "role": "grid", "lr": 1e-3, "budget": 9, "steps": 5, "forwards": 10,
    "diverged": False, "train_loss": 0.5, "val_loss": None, "metric": None, "metric_name": None,
    "curve": [[1, 0.5]], "seconds": 1.0, "peak_bytes": None, "versions": {}, "hardware": {},
    "commit": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("commit", ...),
        ("lr", None),
        ("lr", -1.0),
        ("seed", 10**400),
        ("train_loss", "x"),
        ("curve", [[1]]),
        ("curve", [[1, "x"]]),
        ("versions", []),
        ("model", []),
        ("diverged", 3),
    ],
)
def test_a_row_that_no_bench_wrote_is_named(name, value, tmp_path, monkeypatch):
    monkeypatch.setattr("zopeft.jobs.bench.bench.draw_curves", lambda *_: None)
    monkeypatch.setattr("zopeft.jobs.bench.bench.draw_rates", lambda *_: None)
    row = {key: held for key, held in (ROW | {name: value}).items() if held is not ...}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=rf"rows.jsonl, the row 'k': is no row of a bench: {name}"):
        render(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    assert render(tmp_path)["runs"] == 1


@pytest.mark.parametrize("name", ["/dev/zero", "../a", "sub", "\0"])
def test_a_mark_names_files_of_its_checkpoint_alone(name, tmp_path):
    folder = tmp_path / "checkpoint-5"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"")
    (folder / "trainer_state.json").write_text("{}")
    seal(folder, 5, "run")
    assert read_seal(folder, summed=True) is not None
    mark = json.loads((folder / "complete.json").read_text())
    for part in ("files", "sums"):
        mark[part][name] = 0
    (folder / "complete.json").write_text(json.dumps(mark))
    assert read_seal(folder) is None
    assert read_seal(folder, summed=True) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_batch_size", {}),
        ("train_batch_size", None),
        ("best_metric", "good"),
        ("best_global_step", [1]),
        ("is_hyper_param_search", "no"),
        ("epoch", "one"),
    ],
)
def test_a_trainers_state_is_refused_by_the_field(name, value, tmp_path):
    callbacks = {"TrainerControl": {"args": {}, "attributes": {}}}
    good = {"train_batch_size": 2, "stateful_callbacks": callbacks, "log_history": []}
    (tmp_path / "trainer_state.json").write_text(json.dumps(good))
    assert read_state(tmp_path).train_batch_size == 2
    # The Trainer's own start of a metric that has been nothing but NaN.
    for metric in (float("-inf"), float("nan"), 0.5, None):
        (tmp_path / "trainer_state.json").write_text(json.dumps(good | {"best_metric": metric}))
        assert read_state(tmp_path).best_global_step is None
    (tmp_path / "trainer_state.json").write_text(json.dumps(good | {name: value}))
    with pytest.raises(InputError, match=f"trainer_state.json: has no readable state: {name}"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"step": "0"},
        {"step": 0, "losses": ["1"], "rows": 1},
        {"step": 0, "losses": [1.0, 10**400], "rows": 1},
        {"step": 0, "losses": 1.0, "rows": 1},
        {"step": 0, "losses": [1.0, 2.0], "rows": 10**400},
        {"step": 0, "losses": [1.0, 2.0], "rows": True},
        {"losses": [1.0]},
        [],
        None,
    ],
)
def test_a_clients_odd_answer_is_left_out(values):
    answer = Answer.from_dict(values)
    assert answer.problem.startswith("federated: no answer that can be read")
    with pytest.raises(RunError, match="no client answers at step 0"):
        Federation(made()[0], lambda _: {0: answer}).step([0])
    # One that answers as it should is heard.
    good = {0: answer, 1: Answer.from_dict({"step": 0, "losses": [1.0, 2.0], "rows": 1})}
    assert Federation(made()[0], lambda _: good).step([0, 1]).losses == (1.0, 2.0)


def asked(change):
    """Returns a question for a client that has a step to make, changed."""
    method, loss = made()
    client = Participant(method, lambda _: loss)
    seen = []

    def ask(questions):
        seen.append(questions[0])
        return {0: client.answer(questions[0])}

    federation = Federation(made()[0], ask)
    federation.step([0])
    federation.step([0])
    return seen[-1].to_dict() | {"first": 0, "header": seen[0].header} | change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"step": "1"}, "no question that can be read (step)"),
        ({"records": [5]}, "no question that can be read (records)"),
        ({"records": [b"x"]}, "step 0 cannot be made again"),
        ({"asked": [1.0]}, "has 1 losses of 2 points"),
        ({"header": b"{}"}, "has no readable journal header"),
    ],
)
def test_a_client_says_what_is_wrong_with_a_question(change, told):
    method, loss = made()
    answer = Participant(method, lambda _: loss).message(asked(change))
    assert told in answer["problem"]
    assert bool(answer["problem"]) == bool(told)
    assert bool(answer["losses"]) != bool(told)


@pytest.mark.parametrize(
    "change", [{"rate": {"x": 1.0}}, {"settings": {"rounding": "up"}}, {"rate": {}}]
)
def test_a_run_that_cannot_begin_as_its_journal_says(change, tmp_path):
    method, loss = made("auto")
    method.settle(loss)
    header = header_of(method)
    for name, value in change.items():
        object.__setattr__(header, name, value)
    with Journal.create(tmp_path / "journal.bin", header) as journal:
        method.step(loss)
        journal.append(method.last_record)
    with pytest.raises(InputError, match=r"journal.bin: its run cannot begin as it says"):
        rebuild(tmp_path / "journal.bin", made("auto")[0])


class Said:
    """What a server says, in place of a connection to one."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, request, timeout):
        content = self.answers.pop(0)
        if isinstance(content, Exception):
            raise content
        self.left = content
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self, size):
        found, self.left = self.left[:size], self.left[size:]
        return found


MODELS = b'{"data": [{"id": "m", "max_model_len": "x"}]}'


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"data": [{"object": "model"}]}',
        b'{"data": [5]}',
        HTTPException("x"),
        ValueError("invalid literal for int()"),
        OverflowError("cannot fit"),
    ],
)
def test_what_is_no_server_of_models_is_told(answer, monkeypatch):
    monkeypatch.setattr(vllm_server, "urlopen", Said(answer))
    with pytest.raises(InputError, match=r"executor.url: "):
        vllm_server.VLLMServer("http://h")


@pytest.mark.parametrize(
    "answer",
    [
        b'{"choices": [{"index": 1e999, "prompt_logprobs": []}]}',
        b'{"choices": [{"index": 0, "prompt_logprobs": [null, []]}]}',
        b'{"choices": [{"index": 0, "prompt_logprobs": [null, {"6": {"logprob": 1%s}}]}]}'
        % (b"0" * 400),
        b"[" * 100_000,
    ],
)
def test_scores_that_are_none_are_told(answer, monkeypatch):
    monkeypatch.setattr(vllm_server, "urlopen", Said(MODELS, answer))
    server = vllm_server.VLLMServer("http://h")
    assert server.longest is None
    with pytest.raises(RunError, match="its scores cannot be read"):
        server.scores("m", [[5, 6]])


def test_an_answer_without_an_end_is_not_read_to_it(monkeypatch):
    monkeypatch.setattr(vllm_server, "LONGEST", 5)
    monkeypatch.setattr(vllm_server, "urlopen", Said(MODELS))
    with pytest.raises(InputError, match="more than 5 bytes"):
        vllm_server.VLLMServer("http://h")


@pytest.mark.parametrize(
    "text",
    [
        "method: {name: ''}",
        "peft: {name: ''}",
        "peft: {name: full, options: {r: 4}}",
        "models: {embedded: {peft: {name: full, options: {r: 4}}}}",
        "method: {decay_to: start}",
    ],
)
def test_what_is_wrong_in_a_recipe_names_its_file(text, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(f"task: {{name: sst2}}\n{text}")
    with pytest.raises(InputError, match=r"own.yaml: "):
        check_recipe(str(file), "tune")
    if "models" not in text:
        with pytest.raises(InputError, match=r"own.yaml: "):
            load_recipe("tune", str(file))


def test_a_template_that_is_no_text_is_named(tmp_path, monkeypatch):
    (tmp_path / served.TEMPLATE).write_bytes(b"\xff")
    source = SimpleNamespace()
    monkeypatch.setattr(served, "load_base", lambda *_: (None, SimpleNamespace(), source))
    monkeypatch.setattr("zopeft.models.adapters.load_adapter", lambda *_: None)
    recipe = load_recipe(
        "eval", flags={"model.name": ("MODEL", "m"), "task.name": ("--task", "sst2")}
    )
    with pytest.raises(InputError, match=r"data.template: cannot be read"):
        served.load_served(recipe, str(tmp_path), lambda *_: None)


LONG = "a" * 300


def test_names_that_no_file_system_takes(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": LONG}}))
    with pytest.raises(InputError, match="1 of 1 weight files are missing"):
        weight_files(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": LONG}))
    assert served.base_of(str(tmp_path)) == LONG
    file = tmp_path / "own.yaml"
    file.write_text(f"task: {{name: {LONG}.yaml}}")
    with pytest.raises(InputError, match=r"own.yaml: task.name: no such task file"):
        check_recipe(str(file), "tune")
    model = tiny_model()
    model.config._name_or_path = "somebody/tiny"
    with pytest.raises(InputError, match="was made for somebody"):
        adapters._check_base(model, {"base_model_name_or_path": f"somebody/{LONG}"}, "x")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_some_kilobytes_that_unpack_to_gigabytes(name, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "FREE", 1 << 16)
    row, end = b'{"text": "a film", "label": "yes"}', b""
    if name == "a.json.gz":
        row, end = b"[" + row, b"]"
    if name == "a.csv.gz":
        row = b"text,label\na film,yes"
    file = tmp_path / name
    file.write_bytes(gzip.compress(row + b" " * (1 << 24) + end))
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert file.stat().st_size * unpacking.FACTOR < 1 << 24
    with pytest.raises(InputError, match=f"{name}: unpacks to more than [0-9]+ bytes"):
        data = zopeft.load_data(file, tokenizer, max_length=32, streaming=streaming)
        list(data.train)
    file.write_bytes(gzip.compress(row + end))
    with unpacking.unpacked(file) as opened:
        assert opened.read() == row + end
        opened.seek(3)
        assert opened.read(4) == (row + end)[3:7]


def test_a_parquet_file_of_a_few_bytes_and_millions_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "ROWS", 1000)
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.nulls(500_000, pa.string())}), file)
    with pytest.raises(InputError, match=r"a.parquet: holds 500000 rows in [0-9]+ bytes"):
        read_file(file)
    parquet.write_table(pa.table({"text": ["a", "b"]}), file)
    assert read_file(file).rows == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_lines_without_anything_come_to_an_end(name, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "BLANK", 1000)
    file = tmp_path / name
    file.write_bytes(b"\n\r\n" * 501)
    with pytest.raises(InputError, match=rf"{name}: has more than 1,000 blank lines"):
        read_file(file)


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [None, "fast", float("nan"), True])
def test_a_state_without_its_rates_is_refused_before_a_step(name, value):
    method, loss = made()
    method.step(loss)
    state = method.state_dict()
    made()[0].load_state_dict(state)
    for group in state["param_groups"]:
        group[name] = value
    with pytest.raises(InputError, match=f"optimizer state: a group's {name} is no finite number"):
        made()[0].load_state_dict(state)


def test_a_scheduler_without_its_rates_is_refused():
    method, _ = made()
    scheduler = torch.optim.lr_scheduler.LambdaLR(method, lambda step: 1.0)
    check_scheduler(scheduler, len(method.param_groups))
    for name, value in (("base_lrs", [float("inf")]), ("base_lrs", []), ("last_epoch", "one")):
        damaged = SimpleNamespace(**{**vars(scheduler), name: value})
        with pytest.raises(InputError, match=r"scheduler\.pt: it"):
            check_scheduler(damaged, len(method.param_groups))


def test_what_a_checkpoint_says_wrongly_is_told_with_its_name():
    def wrong():
        raise InputError("rounding: unknown rounding")

    with (
        pytest.raises(InputError, match=r"^checkpoint-5: rounding: unknown"),
        refused("checkpoint-5"),
    ):
        wrong()
