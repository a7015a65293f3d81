"""What all tests share: one thread, no network, and the real inputs where they lie."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for work sleep: two processes of two threads each spin on two cores otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.path.exists("/dev/nvidiactl"):
    # Read when triton is imported, which bitsandbytes does for itself.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

FROZEN = pytest.StashKey[int]()
COMPILED = pytest.StashKey[tempfile.TemporaryDirectory]()
COMPILING = pytest.StashKey[subprocess.Popen]()
KERNELS = "zopeft.kernels.numba_kernels"
COMPILE = f"""
import pathlib, sys
try:
    import {KERNELS} as kernels
    for kernel in kernels._kernel.__self__.kernels:
        kernel.ready()
finally:
    pathlib.Path(sys.argv[1]).touch()
"""


class Waiting:
    """Holds up whoever imports the compiled kernels until one process has compiled them."""

    def __init__(self, done):
        self.done = Path(done)

    def find_spec(self, name, path=None, target=None):
        end = time.monotonic() + 120
        while name == KERNELS and not self.done.exists() and time.monotonic() < end:
            time.sleep(0.05)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Has the kernels compiled once for all workers, while they import and collect."""
    shared = node.config.stash
    if COMPILED not in shared:
        shared[COMPILED] = tempfile.TemporaryDirectory()
        words = [sys.executable, "-c", COMPILE, f"{shared[COMPILED].name}/done"]
        shared[COMPILING] = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    node.workerinput["compiled"] = f"{shared[COMPILED].name}/done"


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        sys.meta_path.insert(0, Waiting(config.workerinput["compiled"]))


def pytest_unconfigure(config):
    if COMPILED in config.stash:
        config.stash[COMPILING].wait()
        config.stash[COMPILED].cleanup()


def pytest_runtest_setup(item):
    """Takes libraries that were imported since the last time from the garbage collector.

    Every run of a Trainer collects, and would walk half a million objects of theirs.
    """
    if len(sys.modules) - item.session.stash.get(FROZEN, 0) > 50:
        item.session.stash[FROZEN] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random two-layer Llama and the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from zopeft.embedded import MODEL_DIR

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with sixteen sst2 rows a split, in the hub's columns."""
    folder = tmp_path_factory.mktemp("data") / "sst2"
    folder.mkdir()
    rows = [
        {"idx": i, "sentence": f"the film was {word} number {i}", "label": int(word == "good")}
        for i, word in enumerate(["good", "bad"] * 8)
    ]
    for split in ("train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(folder / f"{split}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A file of prompts alone, twice those of ``rewards.PROMPTS``."""
    from rewards import PROMPTS

    file = tmp_path_factory.mktemp("prompts") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS * 2))
    return file


@pytest.fixture
def tiny_tuned(tiny_model):
    """The tiny model with a new LoRA, and its tokenizer."""
    from zopeft.models import attach, load_model

    found, tokenizer = load_model(str(tiny_model))
    return attach(found, "lora"), tokenizer


@pytest.fixture
def zopeft_command(capsys):
    """Calls ``zopeft`` in this process, see `cli_runs.Runner`."""
    from cli_runs import Runner

    return Runner(capsys)


@pytest.fixture(params=[1, 2])
def threads(request):
    """So many threads of torch, and of the compiled kernels."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
