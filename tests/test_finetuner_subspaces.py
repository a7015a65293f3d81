"""Learned subspaces in the artifact: stored, read with suspicion, matched, controlled."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_blocks_families import tiny

import zopeft
from zopeft.blocks import discover
from zopeft.engine import Rows, Subspace
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.finetuner.bases import orthonormal
from zopeft.finetuner.size import basis_numbers, file_bytes, memory_bytes, network_numbers
from zopeft.meta.leading import matrices

RANK = 3


def tied(family, **sizes):
    return tiny(family, tie_word_embeddings=True, **sizes)


def drawn(rows, columns, generator):
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]


def learned(blocks, **options):
    """A fine-tuner whose every matrix has a basis of its own."""
    finetuner = FineTuner.initial(blocks, capacity="subspace", rank=RANK, **options)
    generator = torch.Generator().manual_seed(0)
    bases = {}
    for index in matrices(blocks, embeddings=options.get("rows", "none") == "none"):
        rank = min(RANK, *blocks[index].shape)
        rows, columns = blocks[index].shape
        bases[index] = (drawn(rows, rank, generator), drawn(columns, rank, generator))
    finetuner.set_bases(finetuner.match(blocks), bases)
    return finetuner, bases


@pytest.fixture
def blocks():
    return discover(tied("llama"))


def test_round_trip_keeps_every_bit_and_the_columns_orthonormal(blocks, tmp_path):
    finetuner, bases = learned(blocks, mix=0.2)
    again = FineTuner.from_pretrained(finetuner.save_pretrained(tmp_path / "saved"))
    assert again.config == finetuner.config
    assert (again.config.capacity, again.config.rank, again.config.mix) == ("subspace", RANK, 0.2)
    assert sorted(again.bases) == sorted(finetuner.bases) and len(again.bases) == 15
    for index, (left, right) in bases.items():
        stored = again.bases[index]
        assert torch.equal(stored.left, finetuner.bases[index].left)
        assert torch.equal(stored.right, finetuner.bases[index].right)
        for side, exact in ((stored.left, left), (stored.right, right)):
            assert side.dtype == torch.bfloat16
            used = orthonormal(side)
            eye = torch.eye(used.shape[1])
            torch.testing.assert_close(used.t() @ used, eye, atol=1e-6, rtol=0)
            torch.testing.assert_close(used, exact, atol=0.02, rtol=0)
    file = tmp_path / "saved" / "finetuner.safetensors"
    assert file.stat().st_size - file_bytes(again.config) in range(10_000)


def test_sizes_counted_by_hand(blocks):
    finetuner, _ = learned(blocks)
    numbers = sum((b.shape[0] + b.shape[1]) * RANK for b in blocks if len(b.shape) == 2)
    config = finetuner.config
    assert basis_numbers(config) == numbers
    assert network_numbers(config) == sum(p.numel() for p in finetuner.nets.parameters())
    assert file_bytes(config) == 4 * network_numbers(config) + 2 * numbers
    assert memory_bytes(config) == 4 * network_numbers(config) + 4 * numbers
    assert basis_numbers(finetuner.without_bases().config) == 0


def test_the_first_format_is_read(blocks, tmp_path):
    folder = FineTuner.initial(blocks).save_pretrained(tmp_path / "old")
    path = folder / "finetuner_config.json"
    values = json.loads(path.read_text())
    values["format_version"] = 1
    for name in ("capacity", "rank", "mix", "rows", "power"):
        del values[name]
    path.write_text(json.dumps(values))
    old = FineTuner.from_pretrained(folder)
    assert old.config.capacity == "scales" and old.bases == {}
    assert old.shapes(old.match(blocks)) == {}


def cut(tensors):
    tensors["left.1"] = tensors["left.1"][1:].contiguous()


def lose(tensors):
    del tensors["right.2"]


def add(tensors):
    tensors["left.0.bias"] = torch.zeros(3)


def stretch(tensors):
    tensors["left.1"] *= 1.5


def spoil(tensors):
    tensors["right.1"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"left.1 does not fit .*expected \[16, 3\], got \[15, 3\]"),
        (lose, "must hold the 34 tensors w1, b1, w2, b2, ..., got 'no right.2'"),
        (add, "got 'also left.0.bias'"),
        (stretch, "left.1 holds directions that are not orthonormal"),
        (spoil, "right.1 holds values that are not finite numbers"),
    ],
)
def test_damaged_tensors_are_refused_in_one_line(blocks, tmp_path, damage, message):
    folder = learned(blocks)[0].save_pretrained(tmp_path / "saved")
    file = folder / "finetuner.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(InputError, match=message) as caught:
        FineTuner.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": "subspaces"}, "unknown capacity, got 'subspaces'; did you mean 'subspace'"),
        ({"capacity": "subspace", "sharing": "layer"}, "a subspace belongs to one block"),
        ({"rank": 0}, "rank: must be a whole number, 1 or more, got 0"),
        ({"mix": 1.5}, "mix: must be a number between 0 and 1, got 1.5"),
        ({"rows": "often"}, "unknown rows, got 'often'"),
        ({"power": float("nan")}, "power: must be a number between 0 and 10"),
    ],
)
def test_bad_capacities_are_refused(blocks, options, message):
    with pytest.raises(InputError, match=message):
        FineTuner.initial(blocks, **options)


def test_a_block_gets_the_basis_of_its_group(blocks):
    finetuner, bases = learned(blocks, mix=0.25)
    fitted = finetuner.fitted(finetuner.match(blocks))
    assert fitted.report == "15 blocks in a learned subspace"
    assert sorted(fitted.shapes) == sorted(bases)
    for index, shape in fitted.shapes.items():
        assert isinstance(shape, Subspace) and shape.mix == 0.25
        torch.testing.assert_close(shape.left, bases[index][0], atol=0.02, rtol=0)
        torch.testing.assert_close(shape.right, bases[index][1], atol=0.02, rtol=0)


def test_blocks_of_another_size_stay_isotropic_and_are_counted(blocks):
    finetuner, _ = learned(blocks)
    wide = discover(tied("llama", intermediate_size=40))
    fitted = finetuner.fitted(finetuner.match(wide))
    assert fitted.report == "9 blocks in a learned subspace, 6 in all directions of another size"
    assert {wide[i].role for i in fitted.shapes}.isdisjoint({"gate_proj", "up_proj", "down_proj"})
    deep = discover(tied("llama", num_hidden_layers=4))
    assert finetuner.fitted(finetuner.match(deep)).report == "29 blocks in a learned subspace"


def test_rows_by_frequency_take_the_place_of_the_embeddings_subspace(blocks):
    finetuner, _ = learned(blocks, rows="frequency", power=1.0)
    match = finetuner.match(blocks)
    assert finetuner.fitted(match).report == (
        "14 blocks in a learned subspace, 1 in all directions for want of token counts"
    )
    counts = torch.tensor([3, 0, 8])
    fitted = finetuner.fitted(match, counts)
    assert fitted.report == "14 blocks in a learned subspace, 1 with rows by token frequency"
    rows = fitted.shapes[0]
    assert isinstance(rows, Rows) and len(rows.weights) == blocks[0].shape[0]
    assert rows.weights[:4].tolist() == [4.0, 1.0, 9.0, 1.0]
    too_long = torch.ones(blocks[0].shape[0] + 1)
    with pytest.raises(InputError, match="rows only"):
        finetuner.fitted(match, too_long)


def served(finetuner, adapted):
    """Role of each adapter tensor to which sides of its direction have a basis."""
    blocks = discover(adapted)
    shapes = finetuner.fitted(finetuner.match(blocks), adapters=True).shapes
    return blocks, {
        i: (shape.left is not None, shape.right is not None) for i, shape in shapes.items()
    }


def test_lora_takes_the_side_that_it_shares_with_its_base(blocks):
    finetuner, bases = learned(blocks)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted, sides = served(finetuner, get_peft_model(tied("llama"), config))
    assert len(sides) == len(adapted) == 8
    by_key = {b.name: i for i, b in enumerate(blocks)}
    match = finetuner.match(adapted)
    shapes = finetuner.fitted(match, adapters=True).shapes
    assert finetuner.shapes(match) == {}
    for index, block in enumerate(adapted):
        left, right = bases[by_key[block.key]]
        if block.role == "lora_B":
            assert sides[index] == (True, False)
            torch.testing.assert_close(shapes[index].left, left, atol=0.02, rtol=0)
        else:
            assert sides[index] == (False, True)
            torch.testing.assert_close(shapes[index].right, right, atol=0.02, rtol=0)


def test_lora_on_layers_stored_the_other_way_round():
    """GPT-2 stores [I, O]: there LoRA's A reads the directions of the first dimension."""
    blocks = discover(tied("gpt2"))
    finetuner, bases = learned(blocks)
    config = LoraConfig(
        r=2, target_modules=["c_attn", "wte"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    adapted, sides = served(finetuner, get_peft_model(tied("gpt2"), config))
    assert len(sides) == len(adapted) == 6
    by_key = {b.name: i for i, b in enumerate(blocks)}
    match = finetuner.match(adapted)
    shapes = finetuner.fitted(match, adapters=True).shapes
    assert finetuner.shapes(match) == {}
    for index, block in enumerate(adapted):
        left, right = bases[by_key[block.key]]
        if block.role.endswith("_A"):
            torch.testing.assert_close(shapes[index].right, left, atol=0.02, rtol=0)
        else:
            torch.testing.assert_close(shapes[index].left, right, atol=0.02, rtol=0)


def test_an_adapters_own_basis_serves_both_sides():
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tied("llama"), config)
    finetuner, _ = learned(discover(model))
    _, sides = served(finetuner, model)
    assert set(sides.values()) == {(True, True)} and len(sides) == 4
    other = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    blocks, sides = served(finetuner, get_peft_model(tied("llama"), other))
    assert sides == {}
    assert "4 in all directions of another size" in finetuner.fitted(finetuner.match(blocks)).report


def test_shuffled_bases_change_places_within_their_shape(blocks):
    finetuner, _ = learned(blocks)
    control = finetuner.shuffled(seed=1)
    groups = finetuner.config.groups
    alone = [i for i in finetuner.bases if [g.shape for g in groups].count(groups[i].shape) == 1]
    assert [groups[i].role for i in alone] == ["embed"]
    moved = 0
    for index, basis in control.bases.items():
        source = [i for i, one in finetuner.bases.items() if one.left is basis.left]
        assert len(source) == 1
        assert groups[source[0]].shape == groups[index].shape
        moved += source[0] != index
    assert moved == 14
    assert control.fitted(control.match(blocks)).report == "15 blocks in a learned subspace"
    again = finetuner.shuffled(seed=1)
    assert all(again.bases[i].left is control.bases[i].left for i in control.bases)
    assert control.config.training["control"] == "shuffled"


def test_the_shuffled_control_gives_rows_the_frequencies_of_other_tokens(blocks, tmp_path):
    finetuner, _ = learned(blocks, rows="frequency")
    match = finetuner.match(blocks)
    (table,) = [i for i, block in enumerate(blocks) if block.role == "embed"]
    counts = torch.arange(blocks[table].shape[0])
    own = finetuner.fitted(match, counts).shapes[table].weights
    control = finetuner.shuffled(seed=1)
    other = control.fitted(match, counts).shapes[table].weights
    assert not torch.equal(own, other)
    assert torch.equal(own.sort().values, other.sort().values)
    again = FineTuner.from_pretrained(control.save_pretrained(tmp_path / "control"))
    assert torch.equal(again.fitted(match, counts).shapes[table].weights, other)
    assert torch.equal(finetuner.fitted(match, counts).shapes[table].weights, own)


def test_random_bases_have_the_same_sizes_and_none_of_the_directions(blocks):
    finetuner, _ = learned(blocks)
    control = finetuner.with_random_bases(seed=4)
    assert sorted(control.bases) == sorted(finetuner.bases)
    for index, basis in control.bases.items():
        assert basis.left.shape == finetuner.bases[index].left.shape
        assert not torch.equal(basis.left, finetuner.bases[index].left)
        used = orthonormal(basis.right)
        torch.testing.assert_close(used.t() @ used, torch.eye(used.shape[1]), atol=1e-6, rtol=0)
    assert finetuner.without_bases().shapes(finetuner.match(blocks)) == {}
    # The fine-tuner itself is as it was.
    assert finetuner.config.capacity == "subspace" and len(finetuner.bases) == 15


def test_the_method_probes_and_updates_inside_the_subspace(blocks):
    """With no noise mixed in, a step moves a matrix by U Z V^T alone."""
    finetuner, _ = learned(blocks, mix=0.0)
    method = zopeft.ZOFineTuner(blocks, finetuner, lr=1e-2)
    before = [b.data.clone() for b in blocks]
    shapes = method.fitted.shapes
    method.step(lambda: sum(b.parameter.square().sum() for b in blocks))
    for index, block in enumerate(blocks):
        moved = block.data - before[index]
        assert float(moved.norm()) > 0
        if index in shapes:
            left, right = shapes[index].left, shapes[index].right
            inside = left @ (left.t() @ moved @ right) @ right.t()
            torch.testing.assert_close(inside, moved, atol=1e-5, rtol=1e-3)
