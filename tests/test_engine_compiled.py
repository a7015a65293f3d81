"""A compiled model is tuned as it would be uncompiled, whatever carries its weights."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.blocks.bare import is_compiled
from zopeft.engine import Direction, Engine
from zopeft.engine.carrier import UnstackableError
from zopeft.probing.stacking import Stacking

IDS = (torch.arange(16).view(2, 8) * 7 + 5) % 61


class Small(nn.Module):
    """A table that is read twice, a layer, and one that nothing reads."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer = nn.Embedding(61, 8), nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.to(dtype)

    def forward(self, ids):
        logits = linear(torch.tanh(self.layer(self.table(ids))), self.table.weight)
        return cross_entropy(logits[:, :-1].mT.float(), ids[:, 1:])


class Graphs:
    """A backend that counts its graphs and the calls of them."""

    def __init__(self):
        self.made = self.calls = 0

    def __call__(self, graph, inputs):
        self.made += 1

        def call(*args):
            self.calls += 1
            return graph.forward(*args)

        return call


def wrapped(model, graphs):
    return torch.compile(model, backend=graphs)


def in_place(model, graphs):
    model.compile(backend=graphs)
    return model


@pytest.fixture(autouse=True)
def fresh():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("wrap", [wrapped, in_place])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_weights_in_modules_move_as_uncompiled(wrap, known, dtype):
    runs = []
    for graphs in (None, Graphs()):
        model = Small(dtype)
        blocks = None if known else zopeft.discover(model)
        outer = model if graphs is None else wrap(model, graphs)
        blocks = zopeft.discover(outer) if blocks is None else blocks
        optimizer = zopeft.MeZO(blocks, lr=1e-2, eps=1e-2, seed=3, carrier="modules")
        losses = []
        for _ in range(4):
            optimizer.step(lambda outer=outer: outer(IDS))
            losses.append(optimizer.last_record.losses)
        assert is_compiled(outer) == (graphs is not None)
        runs.append((losses, [p.detach().clone() for p in model.parameters()]))
        if graphs is not None:
            # Graphs were run, and none was made for each probe.
            assert graphs.calls >= 6 and graphs.made <= 3
    start = list(Small(dtype).parameters())
    assert not torch.equal(start[0], runs[0][1][0])
    assert all(torch.equal(a, b) for a, b in zip(start[-2:], runs[1][1][-2:], strict=True))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@torch.no_grad()
def test_compiled_code_sees_the_probe_and_leaves_the_weights():
    graphs = Graphs()
    model = torch.compile(Small(torch.bfloat16), backend=graphs)
    engine = Engine(zopeft.discover(model), carrier="modules")
    own = {name: p.clone() for name, p in model._orig_mod.named_parameters()}
    base = float(model(IDS))
    with engine.perturbed(Direction(1), 0.05):
        probe = float(model(IDS))
    assert graphs.calls == 2 and abs(probe - base) > 1e-3
    with pytest.raises(RuntimeError, match="boom"), engine.perturbed(Direction(1), 0.05):
        raise RuntimeError("boom")
    assert float(model(IDS)) == base and graphs.calls == 3
    assert all(torch.equal(own[name], p) for name, p in model._orig_mod.named_parameters())
    assert Stacking(engine).unstackable == "the model is compiled"
    with pytest.raises(UnstackableError), Stacking(engine).shown([(Direction(1), 0.05)]):
        pass


def test_the_trainer_compiles(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    start = LlamaForCausalLM(config).bfloat16().eval()
    row = {"input_ids": [2, 5, 6, 7], "attention_mask": [1] * 4, "labels": [2, 5, 6, 7]}
    weights = []
    for compiled in (False, True):
        model = LlamaForCausalLM(config).bfloat16().eval()
        model.load_state_dict(start.state_dict())
        arguments = zopeft.ZOTrainingArguments(
            output_dir=str(tmp_path / str(compiled)),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            probes="separate",
            use_cpu=True,
            torch_compile=compiled,
            torch_compile_backend="eager" if compiled else None,
        )
        data = Dataset.from_list([row] * 4)
        trainer = zopeft.ZOTrainer(model, arguments, train_dataset=data)
        trainer.train()
        assert trainer.method.engine.reads.compiled == compiled
        weights.append(list(trainer.model.state_dict().values()))
    assert not torch.equal(weights[0][0], start.state_dict()["model.embed_tokens.weight"])
    # Norms take their step in fp32 only where nothing is compiled: the slopes differ a little.
    moved = [
        a.float() - b.float() for a, b in zip(weights[0], start.state_dict().values(), strict=True)
    ]
    apart = [a.float() - b.float() for a, b in zip(*weights, strict=True)]
    sizes = [sum(float(each.square().sum()) for each in found) for found in (apart, moved)]
    assert sizes[0] < 0.1 * sizes[1]
