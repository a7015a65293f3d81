"""Meta-training by forward passes alone: what it measures, what it leaves alone."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from accelerate import cpu_offload
from test_meta import batches, bits, loss_of, tiny
from test_meta_leading import decaying, overlap

import zopeft
from zopeft.engine import Subspace
from zopeft.errors import InputError, RunError
from zopeft.finetuner import FineTuner
from zopeft.jobs.meta_beginning import passes_of
from zopeft.meta import MetaSettings
from zopeft.meta.activations import InputDirections, linear_inputs, real_tokens
from zopeft.meta.forward_run import without_gradients
from zopeft.meta.forward_trainer import TURN, ForwardTrainer
from zopeft.meta.probe_statistics import VECTORS, ProbeStatistics, drawn_together, groups_of_probes
from zopeft.ranks import Ranks


@pytest.fixture
def base(tiny_model, tiny_data):
    return (tiny_model, "--task", "sst2", "--data", tiny_data)


def masked():
    """Batches whose second text is padded."""
    for name, batch in batches():
        mask = torch.ones_like(batch["input_ids"])
        mask[1, 4:] = 0
        yield name, {**batch, "attention_mask": mask}


def trainer_of(model, loss=loss_of, counts=None, stream=None, **settings):
    blocks = zopeft.discover(model)
    plain = {"steps": 12, "eps": 1e-2, "token_rows": "none", "gradients": "forward"}
    checked = MetaSettings.of(**{**plain, **settings}).decided(blocks.space)
    finetuner = FineTuner.initial(
        blocks, rows=checked.token_rows, capacity=checked.capacity, rank=checked.directions
    )
    stream = batches() if stream is None else stream
    return ForwardTrainer(model, stream, loss, checked, blocks, finetuner, counts)


def test_sketches_of_activations_are_their_second_moments():
    model, seen = tiny(), {}
    blocks = zopeft.discover(model)
    layers = linear_inputs(blocks)
    assert len(layers) == 14 and {blocks[i].kind for i in layers} == {"linear"}
    found = InputDirections(blocks, layers, 4, seed=0)
    stream = list(itertools.islice(masked(), 3))
    with without_gradients(model):
        for _, batch in stream:
            with found.watching(batch):
                loss_of(model, batch)
        hooks = [
            blocks[i]
            .owners[0]
            .module.register_forward_pre_hook(
                lambda _, inputs, i=i: seen.setdefault(i, []).append(inputs[0])
            )
            for i in layers
        ]
        for _, batch in stream:
            loss_of(model, batch)
        for hook in hooks:
            hook.remove()
    bases = found.bases()
    assert sorted(bases) == layers
    for index in layers:
        moments = 0.0
        for hidden, (_, batch) in zip(seen[index], stream, strict=True):
            tokens = hidden[batch["attention_mask"].bool()].double()
            assert len(tokens) == 18
            moments = moments + tokens.t() @ tokens / 18
        assert found.sketches[index].exact
        torch.testing.assert_close(
            found.sketches[index].total.double(), moments, rtol=1e-4, atol=1e-6
        )
        left, right = bases[index]
        exact = torch.linalg.eigh(moments)[1].flip(1)[:, :4]
        assert left is None and right.shape == (blocks[index].shape[1], 4)
        assert overlap(right, exact) > 0.999
        held = float((exact.t() @ moments @ exact).trace() / moments.trace())
        assert 0.2 < held < 1.0
        gain = 0.75 * held * len(moments) / 4 + 0.25
        assert found.gains(0.25)[index] == pytest.approx(gain, rel=1e-4)


def test_a_wide_layers_directions_come_from_a_sketch_that_is_narrower():
    layer = torch.nn.Linear(150, 40, bias=False)
    found = InputDirections(zopeft.discover(layer), [0], 3, seed=1)
    rows = [g.t() for g in decaying(150, 90, 5, torch.Generator().manual_seed(0))]
    for some in rows:
        found.take(0, some)
    found.take(0, torch.full((4, 150), math.nan))
    assert found.sketches[0].width == 22
    moments = sum(x.double().t() @ x.double() / len(x) for x in rows)
    exact = torch.linalg.eigh(moments)[1].flip(1)[:, :3]
    assert overlap(found.bases()[0][1], exact) > 0.999
    held = float((exact.t() @ moments @ exact).trace() / moments.trace())
    assert found.gains(0.0)[0] == pytest.approx(held * 50, rel=1e-3)


def test_hidden_states_of_another_layout_count_whole():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    hidden = torch.randn(2, 3, 5)
    assert torch.equal(real_tokens(hidden, mask), hidden[[0, 0, 1], [0, 1, 0]])
    assert real_tokens(hidden[:, :2], mask).shape == (4, 5)
    assert real_tokens(hidden, None).shape == (6, 5)


class Quadratic(torch.nn.Module):
    """A loss whose gradients and curvature are known: ``sum a_b w + h w^2 / 2``, block by block."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 5, bias=False)
        self.q_proj = torch.nn.Linear(6, 5, bias=False)
        self.norm = torch.nn.LayerNorm(8)
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, slopes):
        bends = (4.0, 1.0, 2.0, 2.0)
        return sum(
            (a * w + 0.5 * h * w.square()).sum()
            for a, h, w in zip(slopes, bends, self.parameters(), strict=True)
        )


def slopes_of(noise):
    generator = torch.Generator().manual_seed(5)
    shapes = [p.shape for p in Quadratic().parameters()]
    mean = [
        torch.randn(s, generator=generator) * m for s, m in zip(shapes, (1, 0.2, 1, 0), strict=True)
    ]
    while True:
        yield "toy", [a + noise * torch.randn(a.shape, generator=generator) for a in mean]


def test_probes_measure_what_is_known_of_a_quadratic(monkeypatch):
    """At the start all the time, where every gradient is a batch's own slopes."""
    monkeypatch.setattr("zopeft.meta.forward_trainer.SHARE", 0.0)
    model, noise = Quadratic(), 0.5
    trainer = trainer_of(
        model, lambda m, b: m(b), stream=slopes_of(noise), steps=1200, capacity="scales"
    )
    scores = trainer.train()
    names = [block.role for block in trainer.blocks]
    groups = scores["groups_measured"]
    assert list(groups) == [names[0], "q_proj", VECTORS] and len(set(names[:2])) == 2
    _, mean = next(slopes_of(0.0))
    for name, indices, curvature in (
        (names[0], [0], 30 * 4.0), ("q_proj", [1], 30 * 1.0), (VECTORS, [2, 3], 16 * 2.0)
    ):  # fmt: skip
        signal = sum(float(mean[i].square().sum()) for i in indices)
        energy = signal + noise**2 * sum(mean[i].numel() for i in indices)
        found = groups[name]
        assert found["energy"] == pytest.approx(energy, rel=0.25)
        assert found["curvature"] == pytest.approx(curvature, rel=0.1)
        assert found["signal"] == pytest.approx(signal, abs=0.25 * energy)
    # The group with most signal for its curvature has the largest scale.
    kept = scores["kept_of_groups"]
    assert kept["signal"] > 0.5 and kept["curvature"] > 0.5
    used = [entry["scale"] for entry in scores["statistics"].values()]
    assert used[1] < min(used[0], used[2]) and used[2] == pytest.approx(used[3])
    # Of a group each block has its share by size.
    rows = list(scores["statistics"].values())
    assert sum(row["energy"] for row in rows[2:]) == pytest.approx(groups[VECTORS]["energy"])


def test_what_is_unsure_is_drawn_together():
    values = torch.tensor([1.0, 2.0, 3.0, 2.0], dtype=torch.float64)
    sure, kept = drawn_together(values, torch.full((4,), 1e-6), 2.0)
    torch.testing.assert_close(sure, values, rtol=0, atol=1e-6)
    assert kept == pytest.approx(1.0)
    some, kept = drawn_together(values, torch.full((4,), 0.3), 2.0)
    assert 0.5 < kept < 1.0
    torch.testing.assert_close(some, 2.0 + kept * (values - 2.0), rtol=0, atol=1e-9)
    for errors in (torch.full((4,), 0.6), torch.tensor(math.inf)):
        equal, kept = drawn_together(values, errors, 2.0)
        assert equal.tolist() == [2.0] * 4 and kept == 0.0
    odd = torch.tensor([1.0, math.nan, 3.0, 5.0], dtype=torch.float64)
    found, _ = drawn_together(odd, torch.tensor([0.1, 0.1, 0.1, math.inf]), 2.0)
    assert found[[1, 3]].tolist() == [2.0, 2.0] and found[0] < 1.1


def test_noise_alone_gives_equal_scales_most_of_the_time():
    generator = torch.Generator().manual_seed(0)
    equal = 0
    for _ in range(200):
        errors = torch.full((9,), 0.5)
        values = 0.5 * torch.randn(9, generator=generator, dtype=torch.float64)
        equal += drawn_together(values, errors, 0.0)[1] == 0.0
    assert equal > 180


class Refuses(torch.autograd.Function):
    """The identity, through which no gradient goes."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *_):
        raise AssertionError("a backward pass")


def test_no_backward_pass_is_made_and_the_model_comes_back(monkeypatch):
    model = tiny()
    model.train()
    before, asked, graphs = bits(model), [p.requires_grad for p in model.parameters()], []

    def loss(m, batch):
        graphs.append(torch.is_grad_enabled() or any(p.requires_grad for p in m.parameters()))
        return Refuses.apply(loss_of(m, batch))

    moved = []
    real = ForwardTrainer._move

    def move(self, direction, share):
        real(self, direction, share)
        moved.append(
            not torch.equal(
                bits(model)["model.norm.weight"],
                before["model.norm.weight"],
            )
        )

    monkeypatch.setattr(ForwardTrainer, "_move", move)
    monkeypatch.setattr(torch.autograd, "backward", Refuses.backward)
    told = []
    trainer = trainer_of(model, loss, capacity="auto", reset_every=5)
    scores = trainer.train(lambda *given: told.append(given))
    assert not any(graphs) and len(graphs) == scores["forward_passes"]
    assert scores["forward_passes"] == passes_of(trainer.settings, 1, trainer.blocks)["forward"]
    assert passes_of(trainer.settings, 1, trainer.blocks)["backward"] == 0
    assert moved == [True] * 3 and scores["resets"] == 1
    after = bits(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.requires_grad for p in model.parameters()] == asked and model.training
    assert [(d, t) for d, t, _ in told] == [(i, 12) for i in range(1, 13)]
    assert scores["shapes"] == "14 blocks in a learned subspace"
    # Where nothing is sure, a layer's part in a step is that of isotropic noise.
    start, kept = trainer.start, set(scores["kept_of_groups"].values())
    assert float(start.min()) < 0.5 and float(start.max()) == 1.0 and kept == {0.0}
    used = torch.tensor([row["scale"] for row in scores["statistics"].values()])
    torch.testing.assert_close(used / start, (used / start)[:1].expand(len(used)))


def test_it_comes_back_when_it_is_broken_off():
    model = tiny()
    before = bits(model)

    def progress(done, total, figures):
        if done == 3 + TURN + 1:
            assert not torch.equal(bits(model)["model.norm.weight"], before["model.norm.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(model).train(progress)
    assert all(torch.equal(bits(model)[name], before[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())


def test_losses_that_are_not_finite_end_it_with_one_line():
    with pytest.raises(
        RunError, match=r"not finite for 10 steps in a row, got nan; lower meta\.eps"
    ):
        trainer_of(
            tiny(), lambda m, b: loss_of(m, b) * math.nan, steps=20, capacity="scales"
        ).train()


def test_one_that_has_settled_stops():
    trainer = trainer_of(tiny(), steps=120, capacity="scales", stop=1.0)
    trainer.train()
    assert 24 < len(trainer.history) < 120


def test_it_learns_of_weights_that_are_offloaded():
    plain, moved = trainer_of(tiny(), reset_every=4), tiny()
    offloaded = trainer_of(cpu_offload(moved, torch.device("cpu")))
    with pytest.raises(InputError, match="offloaded and get no gradient"):
        zopeft.meta_train(moved, ("cb",))
    plain.train()
    scores = offloaded.train()
    assert scores["resets"] == 0
    # All that was seen before the first step from the base model is the same.
    for one, two in zip(offloaded.history[:7], plain.history[:7], strict=True):
        assert one["loss"] == two["loss"]
        norms = (one["gradient_norm"], two["gradient_norm"])
        assert norms[0] == pytest.approx(norms[1], rel=1e-3, nan_ok=True)
    assert sorted(offloaded.finetuner.bases) == sorted(plain.finetuner.bases)


def test_one_sided_bases_are_kept_and_served(tmp_path):
    model = tiny()
    trainer = trainer_of(model, input_rank=2)
    trainer.train()
    found = trainer.finetuner
    assert found.config.sides == "inputs"
    found.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "finetuner_config.json").read_text())
    assert (written["format_version"], written["sides"]) == (4, "inputs")
    again = FineTuner.from_pretrained(tmp_path)
    assert len(again.bases) == 14
    for index, basis in again.bases.items():
        assert basis.left is None and torch.equal(basis.right, found.bases[index].right)
    blocks = zopeft.discover(model)
    shapes = again.shapes(again.match(blocks))
    assert {type(shape) for shape in shapes.values()} == {Subspace} and len(shapes) == 14
    down = next(i for i, block in enumerate(blocks) if block.role == "down_proj")
    for control in (again.shuffled(1), again.with_random_bases(1)):
        assert [b.left for b in control.bases.values()] == [None] * 14
        assert not torch.equal(control.bases[down].right, again.bases[down].right)
    optimizer = zopeft.ZOFineTuner(blocks, again, lr=1e-3)
    _, batch = next(batches())
    losses = [float(optimizer.step(lambda: loss_of(model, batch))) for _ in range(2)]
    assert all(map(math.isfinite, losses)) and losses[0] != losses[1]


def test_sides_that_do_not_go_together_are_refused_and_both_are_the_format_of_before(tmp_path):
    blocks = zopeft.discover(tiny())
    finetuner = FineTuner.initial(blocks, capacity="subspace", rank=1)
    match = finetuner.match(blocks)
    indices = linear_inputs(blocks)[:2]
    both = {i: tuple(torch.eye(n, 1) for n in blocks[i].shape) for i in indices}
    first = indices[0]
    for wrong in (
        {**both, first: (None, both[first][1])},
        {i: (left, None) for i, (left, _) in both.items()},
        {first: (None, None)},
    ):
        with pytest.raises(InputError, match="bases: hold sides that do not go together"):
            finetuner.set_bases(match, wrong)
    finetuner.set_bases(match, both)
    finetuner.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "finetuner_config.json").read_text())
    assert written["format_version"] == 3 and "sides" not in written


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"objective": "paper"}, "meta.objective: needs backward passes"),
        ({"policy": "state"}, "meta.policy: needs backward passes"),
        ({"mask": 0.1}, "meta.mask: needs backward passes"),
        ({"momentum": 0.5}, "meta.momentum: needs backward passes"),
        ({"rank": 4}, "meta.rank: is of both sides, and gradients is forward, got 4; set meta"),
        ({"gradients": "none"}, "meta.gradients: must be one of backward, forward"),
    ],
)
def test_what_needs_gradients_is_refused(settings, told):
    with pytest.raises(InputError) as error:
        MetaSettings.of(**{"gradients": "forward", **settings})
    assert told in str(error.value) and "\n" not in str(error.value)


def test_several_processes_are_refused():
    class Two(Ranks):
        def everyone(self, value):
            return [value, value]

    with pytest.raises(InputError, match="one process's to make, got 2; start one"):
        zopeft.meta_train(tiny(), ("cb",), ranks=Two(0, 2), gradients="forward")


def test_vectors_are_one_group_and_roles_the_others():
    blocks = zopeft.discover(tiny())
    groups = groups_of_probes(blocks)
    assert sorted(itertools.chain(*groups.values())) == list(range(len(blocks)))
    assert len(groups) == 9 and len(groups[VECTORS]) == 5 and len(groups["q_proj"]) == 2
    assert len(ProbeStatistics(blocks).groups) == 9


def test_the_command_line_learns_and_tunes(zopeft_command, base, tmp_path):
    learned = tmp_path / "finetuner"
    words = ("--full", "--batch-size", 2, "--forward-only", "--hidden", 4, "--out", learned)
    plan = zopeft_command.json("meta-train", *base, *words, "--steps", 8, "--rank", 2, "--dry-run")
    assert plan["forward_passes"]["backward"] == 0 and not learned.exists()
    line = zopeft_command.refused("meta-train", *base, *words, "--objective", "paper")
    assert "meta.objective: needs backward passes, and gradients is forward" in line
    meta = zopeft_command.json("meta-train", *base, *words, "--steps", 8, "--rank", 2)
    assert meta["forward_passes"] == plan["forward_passes"]["forward"]
    assert meta["recipe"]["meta"]["gradients"] == "forward"
    found = FineTuner.from_pretrained(learned)
    assert (found.config.sides, found.config.rank) == ("inputs", 2)
    assert "of the inputs alone" in (learned / "README.md").read_text()
    words = ("--full", "--finetuner", learned, "--steps", 2, "--batch-size", 2)
    summary = zopeft_command.json("tune", *base, *words, "--out", tmp_path / "out")
    assert summary["method"] == "zo_finetuner" and summary["steps"] == 2


def test_it_learns_of_a_quantised_models_scales_and_moves_none(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    blocks = zopeft.discover(model.eval(), space="scales")
    before = [block.data.clone() for block in blocks]
    settings = MetaSettings.of(gradients="forward", steps=2 * TURN).decided("scales")
    assert settings.capacity == "scales"
    finetuner = FineTuner.initial(blocks, rows=settings.token_rows)
    scores = ForwardTrainer(model, batches(), loss_of, settings, blocks, finetuner).train()
    assert len(scores["groups_measured"]) == 7 and scores["resets"] == 0
    assert all(row["energy"] > 0 for row in scores["groups_measured"].values())
    assert all(torch.equal(b.data, old) for b, old in zip(blocks, before, strict=True))
