"""What no forward pass reads is left alone; what is read twice is perturbed in both readings."""

import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import zopeft
from zopeft.engine import Direction, Engine
from zopeft.errors import InputError
from zopeft.journal import Journal, header_of, rebuild
from zopeft.journal.codec import decode, encode
from zopeft.optim.record import StepRecord, packed

IDS = torch.randint(4, 40, (2, 8), generator=torch.Generator().manual_seed(0))
CARRIERS = ["flat", "modules"]


def multimodal():
    torch.manual_seed(0)
    text = {
        "vocab_size": 58,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=51,
        boi_token_index=52,
        eoi_token_index=53,
    )
    return Gemma3ForConditionalGeneration(config).eval()


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.inner(x))


class Routed(nn.Module):
    """Experts as modules and as bare parameters, of which a step is given one of each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(10, 8), nn.Linear(8, 4)
        self.experts = nn.ModuleList([Expert() for _ in range(3)])
        self.bare = nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(3)])

    def forward(self, ids, expert):
        hidden = self.experts[expert](self.table(ids)) @ self.bare[expert]
        return self.out(hidden).square().mean()


class ReadTwice(nn.Module):
    """A table that its own forward reads, and its parent as the output layer's weight."""

    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)
        if tied:
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.table.weight

    def forward(self, ids):
        hidden = torch.tanh(self.layer(self.table(ids)))
        logits = linear(hidden, self.table.weight)
        if hasattr(self, "head"):
            logits = logits + self.head(hidden)
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def values(blocks):
    return {block.name: block.data.clone() for block in blocks}


def moved(before, blocks):
    return {block.name for block in blocks if not torch.equal(before[block.name], block.data)}


@pytest.mark.parametrize("way", ["flat", "modules", "lora", "weight decay"])
def test_a_tower_that_text_never_reaches_is_left_alone(way, caplog):
    model = multimodal()
    if way == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    blocks = zopeft.discover(model)
    options = {"carrier": way} if way in CARRIERS else {}
    decay = 0.1 if way == "weight decay" else 0.0
    optimizer = zopeft.MeZO(blocks, lr=1e-3, weight_decay=decay, **options)
    before = values(blocks)
    with caplog.at_level(logging.WARNING, logger="zopeft"):
        for _ in range(2):
            optimizer.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    found = moved(before, blocks)
    text = {name for name in blocks.names if "vision" not in name and "projector" not in name}
    assert 0 < len(text) < len(blocks) and found == text
    assert optimizer.forward_passes == 4
    (line,) = [record.message for record in caplog.records if "left alone" in record.message]
    assert line.startswith(f"{len(blocks) - len(text)} of {len(blocks)} blocks")
    assert "in model.vision_tower" in line


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_step_leaves_the_experts_alone_that_it_has_not_reached(carrier):
    model = Routed()
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-2, carrier=carrier)
    for expert in (0, 1, 1, 2, 0):
        before = values(optimizer.blocks)
        optimizer.step(lambda expert=expert: model(torch.arange(6), expert))
        found = moved(before, optimizer.blocks)
        assert {name for name in found if "experts" in name or "bare" in name} == {
            f"experts.{expert}.inner.weight",
            f"experts.{expert}.inner.bias",
            f"bare.{expert}",
        }
        assert "table.weight" in found


@pytest.mark.parametrize("carrier", CARRIERS)
def test_micro_batches_of_a_step_are_taken_together(carrier):
    model = Routed()
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-2, carrier=carrier)
    before = values(optimizer.blocks)
    for expert in (0, 2):
        optimizer.estimate(lambda expert=expert: model(torch.arange(6), expert))
    optimizer.apply()
    found = moved(before, optimizer.blocks)
    assert {"bare.0", "bare.2"} <= found and "bare.1" not in found


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_was_left_alone_is_replayed_and_resumed(carrier, tmp_path):
    experts = (0, 0, 1, 2, 1)

    def made():
        return zopeft.MeZO(zopeft.discover(Routed()), lr=1e-2, carrier=carrier)

    def step(optimizer, expert):
        model = optimizer.blocks.model
        optimizer.step(lambda: model(torch.arange(6), expert))

    run = made()
    with Journal.create(tmp_path / "journal.bin", header_of(run)) as journal:
        for number, expert in enumerate(experts):
            if number == 2:
                weights = {k: v.clone() for k, v in run.blocks.model.state_dict().items()}
                state = run.state_dict()
            step(run, expert)
            journal.append(run.last_record)
            assert run.last_record.left_alone
    again = made()
    assert rebuild(tmp_path / "journal.bin", again) == len(experts)
    assert not moved(values(run.blocks), again.blocks) and again.forward_passes == 0
    # From a checkpoint, and from the first records alone: what is watched is known in both.
    saved = made()
    saved.blocks.model.load_state_dict(weights)
    saved.load_state_dict(state)
    begun = made()
    rebuild(tmp_path / "journal.bin", begun, until=2)
    for other in (saved, begun):
        for expert in experts[2:]:
            step(other, expert)
        assert not moved(values(run.blocks), other.blocks)


def test_the_processes_of_a_run_read_together():
    model = Routed()
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-2)
    names = optimizer.blocks.names
    optimizer.engine.reads.agree = lambda read: read.index_fill(
        0, torch.tensor([names.index("bare.1")]), 1
    )
    optimizer.step(lambda: model(torch.arange(6), 0))
    left = {names[index] for index in optimizer.last_record.left_alone}
    assert "bare.2" in left and "bare.1" not in left


def test_a_forward_that_nobody_can_see_reads_everything():
    model = nn.Linear(4, 1)
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-2, carrier="modules")
    optimizer.step(lambda: torch.tensor(float(np.square(weight).sum() + bias.sum() + 1.0)))
    assert optimizer.last_record.unread.size == 0
    assert optimizer.engine.reads.watched == frozenset()


class Packed(nn.Module):
    """A quantised layer, told by the attributes that AWQ's and GPTQ's have."""

    def __init__(self):
        super().__init__()
        self.qweight, self.qzeros = torch.ones(4, 4, dtype=torch.int32), torch.zeros(1)
        self.scales = torch.rand(1, 4) + 0.5

    def forward(self, x):
        return x @ (self.qweight * self.scales)


def test_scales_of_a_layer_that_is_not_run_are_left_alone():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": Packed(), "unused": Packed()})
    optimizer = zopeft.MeZO(zopeft.discover(model, space="scales"), lr=1e-2)
    before = values(optimizer.blocks)
    optimizer.step(lambda: model["used"](torch.ones(2, 4)).square().mean())
    assert moved(before, optimizer.blocks) == {"used.scales"}


def test_all_that_an_ordinary_model_reads_costs_the_journal_nothing():
    record = StepRecord(3, 5, (1.0, 2.0), (0.5,), (1e-3,), 1e-3, 0.0)
    looked = StepRecord(3, 5, (1.0, 2.0), (0.5,), (1e-3,), 1e-3, 0.0, unread=packed([]))
    assert len(encode(record, None)) == len(encode(looked, None))
    assert decode(encode(record, None), None).unread is None
    assert decode(encode(looked, None), None).left_alone == []
    some = StepRecord(3, 5, (1.0, 2.0), (0.5,), (1e-3,), 1e-3, 0.0, unread=packed([1, 9]))
    assert decode(encode(some, None), None).left_alone == [1, 9]
    assert decode(encode(some, some), some).left_alone == [1, 9]
    assert len(encode(some, some)) == len(encode(looked, looked))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("carrier", CARRIERS)
@torch.no_grad()
def test_a_weight_that_is_read_twice_is_perturbed_in_both_readings(carrier, tied):
    model, ids = ReadTwice(tied), torch.randint(0, 50, (4, 12))
    engine, direction = Engine(zopeft.discover(model), carrier=carrier), Direction(5)
    base, own = float(model(ids)), model.table.weight.detach().clone()
    for _ in range(2):
        with engine.perturbed(direction, 0.02):
            probe = float(model(ids))
        again = engine.settle()
    assert not again
    assert float(model(ids)) == base and torch.equal(own, model.table.weight)
    engine.update(direction, 0.02)
    assert abs(base - probe) > 1e-4
    assert float(model(ids)) == pytest.approx(probe, abs=1e-6)


def test_probes_of_a_weight_that_is_read_twice_are_not_stacked():
    model, ids = ReadTwice(), torch.randint(0, 50, (4, 12))

    class Loss:
        tokens = 48

        def __call__(self):
            return model(ids)

        def stacked(self, count):
            return torch.stack([model(part) for part in ids.repeat(count, 1).chunk(count)])

    records = []
    for probes in ("separate", "stacked"):
        model = ReadTwice()
        optimizer = zopeft.MeZO(
            zopeft.discover(model), lr=1e-3, noise="low_rank", carrier="modules", probes=probes
        )
        optimizer.step(Loss())
        records.append(optimizer.last_record.losses)
    assert records[0] == records[1]


def test_a_weight_read_by_a_reference_is_refused():
    model = nn.Linear(4, 1)
    weight = model.weight
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-2, carrier="modules")
    with pytest.raises(InputError, match=r"reference of its own, got 'weight'; .*carrier='flat'"):
        optimizer.step(lambda: model(torch.ones(2, 4)).sum() + weight.square().sum())
    flat = zopeft.MeZO(zopeft.discover(model), lr=1e-2, carrier="flat")
    assert flat.step(lambda: model(torch.ones(2, 4)).sum() + weight.square().sum()) is not None
