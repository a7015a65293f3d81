"""Weights that are tied by their memory: views of one tensor, found, tuned and saved as one."""

import inspect

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.blocks.memory import shared
from zopeft.engine import Direction, Engine
from zopeft.errors import InputError
from zopeft.probing.stacking import Stacking

IDS = (torch.arange(24).view(3, 8) * 7 + 5) % 61


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def tied_adapter():
    if "ensure_weight_tying" not in inspect.signature(LoraConfig).parameters:
        pytest.skip(f"peft {peft.__version__} cannot tie adapters")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["embed_tokens", "lm_head", "q_proj"],
        ensure_weight_tying=True,
    )
    torch.manual_seed(1)
    return get_peft_model(llama(), config).eval()


def loss_of(model):
    with torch.no_grad():
        return float(model(input_ids=IDS, labels=IDS).loss)


class Tower(nn.Module):
    """An embedding and an output layer that holds the transposed view of its table."""

    def __init__(self, transposed):
        super().__init__()
        torch.manual_seed(2)
        self.table = nn.Embedding(24, 6)
        self.out = nn.Linear(24, 6, bias=False)
        if transposed:
            self.out.weight = nn.Parameter(self.table.weight.data.t())
        else:
            self.out = nn.Linear(6, 24, bias=False)
            self.out.weight = nn.Parameter(self.table.weight.data)

    def forward(self):
        hidden = self.table(torch.arange(20))
        if self.out.in_features == 24:
            return self.out(torch.tanh(hidden @ self.table(torch.arange(24)).t())).square().mean()
        return self.out(hidden).square().mean()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("backend", ["plain", "auto"])
@torch.no_grad()
def test_views_of_one_tensor_are_one_block(transposed, carrier, backend):
    model = Tower(transposed)
    blocks = zopeft.discover(model)
    assert blocks.names == ["table.weight"]
    assert [owner.module_name for owner in blocks[0].owners] == ["table", "out"]
    engine, direction = Engine(blocks, carrier=carrier, backend=backend), Direction(5)
    base = float(model())
    with engine.perturbed(direction, 0.05):
        probe = float(model())
    assert float(model()) == base
    engine.update(direction, 0.05)
    assert abs(probe - base) > 1e-4
    assert float(model()) == pytest.approx(probe, rel=1e-6)
    own, other = model.table.weight, model.out.weight
    assert own.data_ptr() == other.data_ptr()
    assert torch.equal(own, other.t() if transposed else other)


def test_a_tied_adapter_stays_tied_and_is_saved_whole(tmp_path):
    model = tied_adapter()
    blocks = zopeft.discover(model)
    tied = [block for block in blocks if len(block.owners) > 1]
    assert len(tied) == 2 and len(blocks) == 6
    before, optimizer = loss_of(model), zopeft.MeZO(blocks, lr=1e-3, eps=1e-2, seed=1, clip=2.0)
    for _ in range(10):
        optimizer.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    assert abs(loss_of(model) - before) > 1e-3
    for block in tied:
        one, two = (owner.module._parameters[owner.leaf] for owner in block.owners)
        assert torch.equal(one, two.t()) and one.data_ptr() == two.data_ptr()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        plain = PeftModel.from_pretrained(llama(), tmp_path).eval()
        wanted = model(input_ids=IDS).logits
        assert torch.equal(plain(input_ids=IDS).logits, wanted)


@torch.no_grad()
def test_a_tied_adapter_in_modules_moves_as_a_flat_one():
    losses = []
    for carrier in ("flat", "modules"):
        model = tied_adapter()
        engine = Engine(zopeft.discover(model), carrier=carrier)
        for step in range(2):
            with engine.perturbed(Direction(step), 0.05):
                loss = loss_of(model)
            if engine.settle():
                with engine.perturbed(Direction(step), 0.05):
                    loss = loss_of(model)
            losses.append(loss)
            engine.update(Direction(step), 0.05)
            losses.append(loss_of(model))
    assert losses[0] != losses[2]
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_tied_adapter_is_not_stacked():
    blocks = zopeft.discover(tied_adapter())
    head = blocks.only([block for block in blocks if "lm_head" in block.owners[-1].module_name])
    assert len(head) == 2
    assert Stacking(Engine(head)).unstackable


def test_a_trained_part_of_another_tensor_is_refused():
    model = nn.Module()
    whole = torch.randn(8, 4)
    model.whole, model.part = nn.Parameter(whole), nn.Parameter(whole[2:5])
    with pytest.raises(InputError, match=r"whole is trained and shares a part .* got 'part'"):
        zopeft.discover(model)
    model.requires_grad_(False)
    model.other = nn.Parameter(torch.ones(3))
    assert zopeft.discover(model).names == ["other"]


def test_columns_side_by_side_are_two_blocks():
    model = nn.Module()
    whole = torch.randn(8, 4)
    model.left, model.right = nn.Parameter(whole[:, :2]), nn.Parameter(whole[:, 2:])
    assert zopeft.discover(model).names == ["left", "right"]


@pytest.mark.parametrize(
    ("cut", "found"),
    [
        (lambda w: w.t(), [(0, 1, True)]),
        (lambda w: w.view(4, 6), [(0, 1, True)]),
        (lambda w: w.view(-1), [(0, 1, True)]),
        (lambda w: w[1:], [(0, 1, False)]),
        (lambda w: w[:, ::2], [(0, 1, False)]),
        (lambda w: w.view(torch.int32), [(0, 1, False)]),
        (lambda w: w.clone(), []),
    ],
)
def test_memory_in_common(cut, found):
    whole = torch.randn(8, 3)
    both = [nn.Parameter(whole), nn.Parameter(cut(whole), requires_grad=False)]
    assert list(shared(both)) == found


def test_a_frozen_view_of_a_trained_weight_is_tied():
    model = Tower(transposed=True)
    model.out.weight.requires_grad_(False)
    blocks = zopeft.discover(model)
    assert len(blocks) == 1 and len(blocks[0].owners) == 2
    assert zopeft.blocks.keep_trainable(model, "table") == 1
    assert model.out.weight.requires_grad
