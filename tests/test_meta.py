"""Meta-training: gradients of the objective, statistics, the closed form, restored weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.engine import Engine
from zopeft.errors import InputError, RunError
from zopeft.finetuner import FineTuner
from zopeft.meta import MetaSettings
from zopeft.meta.gradients import Descent, consumed
from zopeft.meta.paper import PaperObjective, TaskMemory
from zopeft.meta.paper_trainer import PaperTrainer
from zopeft.meta.signal import best_lr, closed_form, objective
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.statistics import SKETCH, BlockStatistics, Sketch
from zopeft.meta.trajectory import Trajectory
from zopeft.noise import Noise

SPOILT = "model.layers.0.mlp.down_proj.weight"


def tiny(lora=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).eval()
    return model


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        yield "toy", {"input_ids": torch.randint(0, 20, (3, 7), generator=generator)}


def loss_of(model, batch):
    return model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss


def draw(model, batch, seed):
    return batch, 18


def bits(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("sharing", ["block", "layer"])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_objectives_gradient_is_that_of_the_loss_after_the_step(sharing, normalise, carrier):
    model = tiny()
    blocks = zopeft.discover(model)
    finetuner = FineTuner.initial(blocks, sharing=sharing, normalise=normalise, seed=3)
    engine = Engine(blocks, carrier=carrier)
    lr_zo, seed = 1e-3, 99
    evaluate = PaperObjective(model, engine, finetuner, loss_of, 1e-3, lr_zo)
    _, batch = next(batches())
    memory = TaskMemory(torch.tensor([2.0, 1.5]), torch.full((len(blocks),), 0.7))
    outcome = evaluate(batch, seed, memory)
    outcome.surrogate.backward()
    got = [p.grad.clone() for p in finetuner.nets.parameters()]

    match = finetuner.match(blocks)
    finetuner.nets.zero_grad()
    mean, variance = engine.statistics()
    features = finetuner.features(match, mean.float(), variance.float(), memory.losses, memory.raw)
    raw = finetuner.raw_scales(match, features)
    scales = finetuner.used_scales(match, raw, torch.tensor(blocks.numels))
    grad = (outcome.losses[0] - outcome.losses[1]) / 2e-3
    moved = {}
    for index, block in enumerate(blocks):
        weight = block.parameter.detach()
        z = Noise().at_elements(seed, block.address, 0, weight.numel()).view(weight.shape)
        moved[block.parameter_name] = weight - lr_zo * grad * scales[index] * z
    ids = batch["input_ids"]
    post = functional_call(
        model, moved, (), {"input_ids": ids, "labels": ids}, tie_weights=True
    ).loss
    post.backward()
    assert outcome.post_loss == pytest.approx(post.item(), abs=1e-6)
    checked = 0
    for mine, parameter in zip(got, finetuner.nets.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0
        tolerance = 2e-3 * float(parameter.grad.abs().max())
        torch.testing.assert_close(mine, parameter.grad, rtol=2e-3, atol=tolerance)
        checked += 1
    assert checked == 4


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["paper", "signal"])
def test_training_moves_the_networks_and_gives_the_model_back_bit_for_bit(kind, lora):
    model = tiny(lora)
    before, asked = bits(model), {n: p.requires_grad for n, p in model.named_parameters()}
    blocks = zopeft.discover(model)
    finetuner = FineTuner.initial(blocks)
    start = finetuner.copy()
    settings = MetaSettings.of(objective=kind, steps=9, reset_every=4, lr_pertnn=10.0, lr_zo=1e-2)
    seen = []

    def progress(done, total, figures):
        seen.append((done, total, figures["loss"]))

    if kind == "paper":
        trainer = PaperTrainer(model, batches(), loss_of, settings, blocks, finetuner)
    else:
        trainer = SignalTrainer(model, batches(), loss_of, draw, settings, blocks, finetuner)
    scores = trainer.train(progress)
    assert [(d, t) for d, t, _ in seen] == [(i, 9) for i in range(1, 10)]
    assert scores["resets"] == 2
    assert finetuner.distance(start)["total"] > 1e-4
    after = bits(model)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())


def test_the_model_comes_back_when_meta_training_is_interrupted():
    model = tiny()
    before = bits(model)
    blocks = zopeft.discover(model)
    settings = MetaSettings.of(steps=9)

    def progress(done, total, figures):
        if done == 3:
            raise KeyboardInterrupt

    trainer = PaperTrainer(model, batches(), loss_of, settings, blocks, FineTuner.initial(blocks))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress)
    after = bits(model)
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_the_trajectory_is_sgd_with_clipping():
    model, twin = tiny(), tiny()
    blocks = zopeft.discover(model)
    _, batch = next(batches())
    descent = Descent(blocks, lr=0.1)
    descent.begin(0.5, 0)
    with consumed(blocks, descent):
        loss_of(model, batch).backward()
    sgd = torch.optim.SGD(twin.parameters(), lr=0.05)
    loss_of(twin, batch).backward()
    sgd.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_not_finite_stops_meta_training_with_one_line():
    model = tiny()
    before = bits(model)
    blocks = zopeft.discover(model)

    def broken(model, batch):
        return loss_of(model, batch) * float("nan")

    trainer = PaperTrainer(
        model, batches(), broken, MetaSettings.of(steps=50), blocks, FineTuner.initial(blocks)
    )
    with pytest.raises(RunError, match="not finite for 10 steps in a row"):
        trainer.train()
    assert all(torch.equal(bits(model)[n], before[n]) for n in before)


@pytest.mark.parametrize("count", [1, 100, SKETCH, 3 * SKETCH + 17])
def test_a_sketchs_inner_products_are_those_of_the_vectors(count):
    generator = torch.Generator().manual_seed(count)
    a = torch.randn(count, generator=generator)
    b = a + torch.randn(count, generator=generator)
    exact = float(a @ b)
    found = [float(Sketch(s)(a, 1)[0] @ Sketch(s)(b, 1)[0]) for s in range(20)]
    spread = float(a.norm() * b.norm()) / SKETCH**0.5
    assert sum(found) / 20 == pytest.approx(exact, abs=5 * spread / 20**0.5 + 1e-3)
    assert max(abs(x - exact) for x in found) < 6 * spread + 1e-3


def test_signal_and_energy_against_direct_computation():
    model = tiny()
    blocks = zopeft.discover(model)
    statistics = BlockStatistics(blocks, 5)
    gradients = []
    stream = batches()
    for step in range(8):
        _, batch = next(stream)
        statistics.begin_gradient(step)
        with consumed(blocks, statistics.take_gradient):
            loss_of(model, batch).backward()
        loss_of(model, batch).backward()
        gradients.append([b.parameter.grad.clone() for b in blocks])
        model.zero_grad()
        norm = sum(float(g.square().sum()) for g in gradients[-1]) ** 0.5
        assert float(statistics.gradient_norm) == pytest.approx(norm, rel=1e-5)
    for index in range(len(blocks)):
        mine = [g[index].double() for g in gradients]
        energy = sum(float(g.square().sum()) for g in mine) / 8
        assert float(statistics.energy()[index]) == pytest.approx(energy, rel=1e-5)
        even, odd = sum(mine[0::2]) / 4, sum(mine[1::2]) / 4
        spread = float(even.norm() * odd.norm())
        assert float(statistics.signal()[index]) == pytest.approx(
            float((even * odd).sum()), abs=0.1 * spread
        )


def test_curvature_against_the_gauss_newton_trace():
    """One softmax layer: the trace is sum over examples of |x|^2 (1 - |p|^2) / N."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 7, bias=False)
    blocks = zopeft.discover(layer)
    x = torch.randn(40, 5)
    probabilities = layer(x).softmax(-1).detach()
    exact = float((x.square().sum(1) * (1 - probabilities.square().sum(1))).mean())
    statistics = BlockStatistics(blocks, 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        statistics.begin_curvature(40)
        with consumed(blocks, statistics.take_curvature):
            torch.nn.functional.cross_entropy(layer(x), labels).backward()
    assert float(statistics.curvature()[0]) == pytest.approx(exact, rel=0.05)


def test_the_closed_form_on_numbers_done_by_hand():
    signal = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    energy = torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64)
    curvature = torch.tensor([8.0, 2.0, 1.0], dtype=torch.float64)
    rms = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    square = torch.tensor([1 / 16, 0.5, 1e-4], dtype=torch.float64)
    for rule, expected in (
        ("signal", square),
        ("signal_twice", square**2),
        # A block of zeros counts with the median of the others, here 0.5.
        ("signal_rms", square * torch.tensor([1.0, 0.25, 0.25], dtype=torch.float64)),
    ):
        scales = closed_form(signal, energy, curvature, rms, rule)
        expected = (expected / expected.mean()).sqrt()
        torch.testing.assert_close(scales, expected)


def test_the_closed_form_raises_the_objective_and_does_not_depend_on_units():
    generator = torch.Generator().manual_seed(0)
    energy = torch.rand(30, generator=generator, dtype=torch.float64) + 0.1
    signal = energy * torch.rand(30, generator=generator, dtype=torch.float64)
    curvature = energy * (torch.rand(30, generator=generator, dtype=torch.float64) + 0.5)
    ones = torch.ones(30, dtype=torch.float64)
    scales = closed_form(signal, energy, curvature, ones, "signal")
    better = objective(scales, signal, energy, curvature)
    assert better > objective(ones, signal, energy, curvature)
    torch.testing.assert_close(objective(3 * scales, signal, energy, curvature), better)


def test_best_lr_on_a_quadratic_where_it_is_known():
    """Full-batch quadratic 1/2 h |w|^2: signal is energy, and d directions share the trace."""
    dimension, bend = 50, 3.0
    gradient = torch.full((1,), 4.0, dtype=torch.float64)
    trace = torch.full((1,), dimension * bend, dtype=torch.float64)
    rate = best_lr(torch.ones(1), gradient, gradient, trace)
    assert rate == pytest.approx(1 / (dimension * bend))
    # The mean fall over directions is indeed greatest near that rate (exactly at 1 / (tr + 2 h)).
    torch.manual_seed(0)
    weight = torch.randn(dimension, dtype=torch.float64)
    z = torch.randn(20_000, dimension, dtype=torch.float64)
    slope = z @ (bend * weight)

    def fall(lr):
        after = weight - lr * slope[:, None] * z
        return float(0.5 * bend * (weight.square().sum() - after.square().sum(1).mean()))

    falls = {m: fall(m * rate) for m in (0.25, 0.5, 1.0, 2.0, 4.0)}
    assert max(falls, key=falls.get) == 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stepz": 3}, "unknown setting; 'stepz': did you mean 'steps'"),
        ({"steps": 0}, "meta.steps: must be >= 1, got 0"),
        ({"eps": 0.0}, "meta.eps: must be > 0.0, got 0.0"),
        ({"objective": "papr"}, "meta.objective: must be one of paper, signal, got 'papr'"),
        ({"sharing": "head"}, "meta.sharing: must be one of block, layer, role, got 'head'"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        MetaSettings.of(**setting)


def test_meta_train_without_a_task_or_tokenizer_is_refused():
    model = tiny()
    with pytest.raises(InputError, match="does not say where it came from"):
        zopeft.meta_train(model, tasks=["copa"])
    with pytest.raises(InputError, match="at least one task"):
        zopeft.meta_train(model, tasks=[], tokenizer=object())


@pytest.mark.parametrize("spoilt", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_is_left_out_of_the_statistics(spoilt):
    blocks = zopeft.discover(tiny())
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return [torch.randn(block.shape, generator=generator) for block in blocks]

    def take(statistics, taker, gradients):
        for index, (block, gradient) in enumerate(zip(blocks, gradients, strict=True)):
            getattr(statistics, taker)(block.parameter, [index], gradient)

    kept, all_of_them = BlockStatistics(blocks, 3), BlockStatistics(blocks, 3)
    for step in range(6):
        gradients = drawn()
        bad = step in (2, 5)
        if bad:
            gradients[3].view(-1)[7] = spoilt
        for statistics in (all_of_them,) if bad else (kept, all_of_them):
            statistics.begin_curvature(4)
            take(statistics, "take_curvature", gradients)
            statistics.begin_gradient(step)
            take(statistics, "take_gradient", gradients)
        assert bool(all_of_them.gradient_norm.isfinite()) != bad
    for name in ("signal", "energy", "curvature"):
        torch.testing.assert_close(getattr(all_of_them, name)(), getattr(kept, name)())
        assert bool(getattr(kept, name)().isfinite().all())
    assert float(kept.energy().min()) > 0


def test_the_first_step_after_a_restart_is_not_clipped_by_the_run_before():
    """As at the very start: the norm is not known, and the step only looks."""
    blocks = zopeft.discover(model := tiny())
    settings = MetaSettings.of(objective="signal", steps=8, reset_every=3)
    finetuner = FineTuner.initial(blocks)
    trainer = SignalTrainer(model, batches(), loss_of, draw, settings, blocks, finetuner)
    norms, descend = [], trainer.trajectory.descend

    def watched(batch, seed, gradient_norm, *rest):
        norms.append(gradient_norm)
        return descend(batch, seed, gradient_norm, *rest)

    trainer.trajectory.descend = watched
    trainer.train()
    assert [step for step, norm in enumerate(norms) if norm != norm] == [0, 3, 6]
    assert norms[1] == trainer.history[0]["gradient_norm"] > 0


@pytest.mark.parametrize("spoilt", [torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_never_reaches_a_weight(spoilt, momentum, dtype):
    """The loss is finite; only one block's gradient is not, or is too large to be used."""
    model = tiny().to(dtype)
    blocks, before = zopeft.discover(model), bits(model)
    settings = MetaSettings.of(lr_model=2.0, momentum=momentum, clip=0.0)
    trajectory = Trajectory(model, blocks, Engine(blocks), loss_of, settings)
    middle = model.model.layers[0].mlp.down_proj.weight
    bad = False
    middle.register_hook(lambda gradient: torch.full_like(gradient, spoilt) if bad else gradient)
    _, batch = next(batches())
    with trajectory:
        trajectory.note(trajectory.descend(batch, 1, 1.0))
        good = bits(model)
        assert not torch.equal(good[SPOILT], before[SPOILT])
        bad = True
        loss = trajectory.descend(batch, 2, 1.0)
        assert loss == loss
        after = bits(model)
        assert all(bool(weight.isfinite().all()) for weight in after.values())
        # The spoilt block and those whose gradients come after it stay where they were.
        for name in (SPOILT, "model.embed_tokens.weight"):
            assert torch.equal(after[name], good[name])
        trajectory.note(loss)
        assert trajectory.resets == 1
        assert all(torch.equal(weight, before[name]) for name, weight in bits(model).items())
        bad = False
        trajectory.note(trajectory.descend(batch, 1, 1.0))
        assert trajectory.resets == 1
        assert all(torch.equal(weight, good[name]) for name, weight in bits(model).items())


def test_gradients_that_are_not_finite_stop_meta_training_with_one_line():
    model = tiny()
    blocks, before = zopeft.discover(model), bits(model)
    model.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    settings = MetaSettings.of(objective="signal", steps=50)
    finetuner = FineTuner.initial(blocks)
    trainer = SignalTrainer(model, batches(), loss_of, draw, settings, blocks, finetuner)
    with pytest.raises(RunError, match="gradient was not finite for 10 steps in a row"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in bits(model).items())
