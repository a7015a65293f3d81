"""Scales that move with the state of a run: windows, objective, learning, sharing, resuming."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_blocks_families import tiny as family
from test_meta import batches, bits, draw, loss_of, tiny
from training_run import Kill, digest, trainer, with_lora
from training_run import tiny_model as counting_model

import zopeft
from zopeft.engine import Engine
from zopeft.errors import InputError
from zopeft.finetuner import STATE_FEATURES, BoundedPertNN, Course, FineTuner, Reading
from zopeft.finetuner.course import SPAN
from zopeft.journal import Journal
from zopeft.meta import MetaSettings
from zopeft.meta.gradients import consumed
from zopeft.meta.policy import Problem, fit
from zopeft.meta.signal import objective
from zopeft.meta.state_trainer import StateTrainer, parts_of
from zopeft.meta.statistics import BlockStatistics
from zopeft.meta.windows import Window, WindowLog

BEND = (*STATE_FEATURES, "log_loss", "bend")


def moving(blocks, features=STATE_FEATURES, sharing="block", seed=0, size=1.0):
    """A fine-tuner with bounded networks that do move."""
    found = FineTuner.initial(
        blocks, hidden=8, features=features, sharing=sharing, output="bounded", seed=seed
    )
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in (found.nets.w2, found.nets.b2):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * size)
        found.nets.prior.uniform_(0.5, 2.0, generator=generator)
    return found


def test_a_windows_statistics_against_direct_computation():
    model = tiny()
    blocks = zopeft.discover(model)
    statistics = BlockStatistics(blocks, 5)
    engine = Engine(blocks)
    log = WindowLog(statistics, engine, 4)
    stream, gradients, drawn, losses = batches(), [], [], []
    for step in range(8):
        if step % 8 == 0:
            log.begin("toy")
        _, batch = next(stream)
        if step % 2 == 0:
            statistics.begin_curvature(18)
            with consumed(blocks, statistics.take_curvature):
                loss_of(model, batch).backward()
            drawn.append(step)
        statistics.begin_gradient(step)
        with consumed(blocks, statistics.take_gradient):
            loss = loss_of(model, batch)
            loss.backward()
        losses.append(loss.item())
        log.note(losses[-1])
        loss_of(model, batch).backward()
        gradients.append([b.parameter.grad.double().clone() for b in blocks])
        model.zero_grad()
    assert [w.run for w in log.windows] == [0, 0]
    for number, window in enumerate(log.windows):
        steps = range(4 * number, 4 * number + 4)
        assert window.loss == pytest.approx(sum(losses[s] for s in steps) / 4)
        for index in range(len(blocks)):
            mine = {s: gradients[s][index] for s in steps}
            energy = sum(float(g.square().sum()) for g in mine.values()) / 4
            assert float(window.energy[index]) == pytest.approx(energy, rel=1e-4)
            bend = sum(18 * float(mine[s].square().sum()) for s in steps if s in drawn) / 2
            assert float(window.curvature[index]) == pytest.approx(bend, rel=1e-4)
            even, odd = (sum(mine[s] for s in steps if s % 2 == half) / 2 for half in (0, 1))
            spread = float(even.norm() * odd.norm())
            assert float(window.signal[index]) == pytest.approx(
                float((even * odd).sum()), abs=0.1 * spread
            )
    # The first values of the run are those of its first two steps.
    scales = torch.rand(len(blocks)) + 0.5
    square = scales.double().square()

    def power(steps):
        each = [[float(g.square().sum()) for g in gradients[s]] for s in steps]
        return float((square * torch.tensor(each, dtype=torch.float64).mean(0)).sum())

    seen = log.reading(log.windows[1], scales)
    first = sum(losses[:2]) / 2
    assert seen.loss_share == pytest.approx(math.log(log.windows[1].loss / first), abs=1e-6)
    change = 0.5 * math.log(power(range(4, 8)) / power(range(2)))
    assert seen.change == pytest.approx(change, abs=1e-5)


def test_a_course_is_what_its_losses_say():
    course = Course()
    assert math.isnan(course.reading().loss_share)
    for _ in range(SPAN):
        course.note(2.1, 1.9, 1.99)
    start = course.reading()
    assert start.loss_share == pytest.approx(0.0) == start.change == start.bend
    assert start.log_loss == pytest.approx(math.log(2.0))
    twin = Course()
    twin.load_state_dict(course.state_dict())
    for one in (course, twin):
        for _ in range(40 * SPAN):
            one.note(1.05, 0.95, 0.9975)
    end = course.reading()
    assert end == twin.reading()
    assert end.loss_share == pytest.approx(math.log(0.5), abs=1e-6)
    assert end.change == pytest.approx(math.log(0.5), abs=1e-6)
    assert end.bend == pytest.approx(math.log(0.25), abs=1e-3)
    plain = Course()
    plain.note(1.0, 1.5)
    assert math.isnan(plain.reading().bend)


def test_bounded_networks_stay_within_their_bound_and_read_the_unseen_as_average():
    blocks = zopeft.discover(tiny())
    found = moving(blocks, size=50.0)
    nets = found.nets
    group = torch.arange(len(blocks))
    wild = torch.randn(len(blocks), len(STATE_FEATURES)) * 1e6
    apart = (nets(wild, group) / nets.prior).log().abs()
    assert float(apart.detach().max()) <= nets.bound * 1.0001
    nets.center.uniform_(-1, 1)
    unseen = torch.full_like(wild, math.nan)
    torch.testing.assert_close(nets(unseen, group), nets(nets.center.expand_as(wild), group))
    fresh = FineTuner.initial(blocks, features=STATE_FEATURES, output="bounded")
    assert fresh.nets(wild, group).tolist() == [1.0] * len(blocks)
    match = fresh.match(blocks)
    fresh.set_scales(match, torch.full((len(blocks),), 0.3))
    torch.testing.assert_close(fresh.nets(wild, group), torch.full((len(blocks),), 0.3))


def test_bounded_fine_tuners_are_saved_whole(tmp_path):
    blocks = zopeft.discover(tiny())
    found = moving(blocks, sharing="role")
    found.nets.center.uniform_(-1, 1)
    found.save_pretrained(tmp_path / "f")
    again = FineTuner.from_pretrained(tmp_path / "f")
    assert isinstance(again.nets, BoundedPertNN)
    assert again.config.bound == found.nets.bound == again.nets.bound
    for name, tensor in found.nets.state_dict().items():
        assert torch.equal(again.nets.state_dict()[name], tensor)
    control = found.shuffled(0)
    assert sorted(control.nets.prior.tolist()) == sorted(found.nets.prior.tolist())
    assert not torch.equal(control.nets.prior, found.nets.prior)


def synthetic(useful, windows=24, count=6, noise=0.05, seed=0):
    """Windows whose best scales depend on the second feature, or on nothing."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.linspace(-1, 1, windows)[torch.randperm(windows, generator=generator)]
    features = torch.zeros(windows, count, 2)
    features[..., 1] = state[:, None]
    lean = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])[:count]
    shift = state[:, None] * lean if useful else torch.zeros(windows, count)
    wobble = torch.randn(windows, count, generator=generator) * (noise if useful else 0.5)
    ones = torch.ones(windows, count, dtype=torch.float64)
    signal = (0.1 * (shift + wobble).exp()).double()
    return Problem(features, signal, ones, ones, torch.arange(windows) % 4, torch.arange(count))


def nets_for(problem):
    generator = torch.Generator().manual_seed(0)
    return BoundedPertNN(problem.signal.shape[1], 2, 8, math.log(2.0), generator)


def test_a_policy_is_learned_where_the_best_scales_depend_on_the_state():
    problem, fresh = synthetic(useful=True), synthetic(useful=True, seed=7)
    nets = nets_for(problem)
    prior = nets.prior.clone()
    verdict = fit(nets, problem, penalty=0.1)
    assert verdict.kept
    assert verdict.gain > 0.1
    assert (verdict.windows, verdict.parts) == (24, 4)
    windows, blocks, _ = fresh.features.shape
    with torch.no_grad():
        raw = nets(fresh.features.flatten(0, 1), fresh.group.repeat(windows)).view(windows, blocks)
    assert float(fresh.gains(prior, (raw / prior).log()).mean()) > 0.1
    # Where the feature is high, the first blocks are to be shaken more.
    high = fresh.features[:, 0, 1] > 0.5
    assert float(raw[high][:, :3].mean()) > 1.3 * float(raw[high][:, 3:].mean())
    # On average over the windows learned from, the scales are the closed form.
    with torch.no_grad():
        mine = nets(problem.features.flatten(0, 1), problem.group.repeat(windows))
    torch.testing.assert_close(
        mine.view(windows, blocks).log().mean(0), prior.log(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("seed", range(2))
def test_noise_leaves_the_closed_form(seed):
    problem = synthetic(useful=False, seed=seed, windows=12)
    nets = nets_for(problem)
    nets.prior.uniform_(0.5, 2.0)
    prior = nets.prior.clone()
    verdict = fit(nets, problem, penalty=1.0)
    assert not verdict.kept
    assert verdict.deviation == 0.0
    rows = torch.randn(6, 2) * 5
    torch.testing.assert_close(nets(rows, torch.arange(6)), prior)


def test_the_gains_slope_is_that_of_the_objective():
    problem = synthetic(useful=True, windows=5)
    prior = torch.rand(6, dtype=torch.float64) + 0.5
    # One window drowns in noise, and stands at the floor.
    problem.signal[2] = -0.1
    deviation = (0.2 * torch.randn(5, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: problem.gains(prior, d), (deviation,))
    row = problem.gains(prior, deviation)[0]
    parts = problem.signal[0], problem.energy[0], problem.curvature[0]
    direct = objective(prior * deviation[0].exp(), *parts) - objective(prior, *parts)
    torch.testing.assert_close(row, direct)
    assert problem.audible(prior).tolist() == [True, True, False, True, True]


def test_windows_are_held_out_by_task_then_by_run_then_by_fours():
    def window(task, run):
        return Window(task, run, 1.0, *[torch.zeros(1)] * 5)

    runs = [("a", 0), ("a", 0), ("b", 1), ("a", 2)]
    assert parts_of([window(*one) for one in runs]).tolist() == [0, 0, 1, 0]
    runs = [("a", 0), ("a", 0), ("a", 1), ("a", 2)]
    assert parts_of([window(*one) for one in runs]).tolist() == [0, 0, 1, 2]
    assert parts_of([window("a", 0)] * 6).tolist() == [0, 1, 2, 3, 0, 1]


def two_tasks():
    for place, (_, batch) in enumerate(batches()):
        yield "ab"[place % 2], batch


@pytest.mark.parametrize("sharing", ["block", "role"])
def test_the_trainer_runs_one_task_at_a_time_and_gives_the_model_back(sharing):
    model = tiny()
    before = bits(model)
    blocks = zopeft.discover(model)
    settings = MetaSettings.of(
        objective="signal", policy="state", sharing=sharing, steps=24, reset_every=8, windows=2
    )
    found = FineTuner.initial(
        blocks, features=settings.features, sharing=sharing, output="bounded", seed=0
    )
    made = StateTrainer(model, two_tasks(), loss_of, draw, settings, blocks, found, ["a", "b"])
    scores = made.train()
    assert all(torch.equal(bits(model)[n], before[n]) for n in before)
    assert [row["task"] for row in made.history] == ["a"] * 8 + ["b"] * 8 + ["a"] * 8
    assert [(w["task"], w["run"]) for w in scores["windows"]] == [
        (task, run) for run, task in enumerate("aba") for _ in range(2)
    ]
    assert scores["policy"]["parts"] == 2
    # The first step of a run only looks, so its first two losses are those of the base model.
    first = made.log._starts["a"]
    assert len(first) == 2
    assert first[0][0] == pytest.approx(sum(r["loss"] for r in made.history[:2]) / 2)
    if not scores["policy"]["kept"]:
        assert float(found.nets.w2.abs().max()) == 0.0


def test_roles_serve_another_depth_and_adapters():
    found = moving(zopeft.discover(family("llama")), sharing="role")
    assert [g.key for g in found.config.groups].count("role q_proj") == 1
    config = copy.deepcopy(family("llama").config)
    config.num_hidden_layers = 5
    deeper = zopeft.discover(type(family("llama"))(config))
    match = found.match(deeper)
    assert match.count == len(deeper) == 3 + 9 * 5
    assert set(match.how) == {"role"}
    n = len(deeper)
    x = found.features(
        match,
        torch.zeros(n),
        torch.ones(n),
        (0.0, 0.0),
        torch.ones(n),
        Reading(loss_share=-1.0, change=-0.5),
    )
    raw = found.raw_scales(match, x)
    # The blocks of a role share a network, and their depth tells them apart.
    ups = [i for i, b in enumerate(deeper) if b.role == "up_proj"]
    assert len(set(match.group[ups].tolist())) == 1
    assert len({round(v, 6) for v in raw[ups].tolist()}) == 5
    adapted = zopeft.discover(with_lora(counting_model()))
    match = found.match(adapted)
    assert match.count == len(adapted) == 8
    served = {row["group"] for row in match.rows()}
    assert served == {"role q_proj", "role v_proj"}
    assert match.report.startswith("8 of 8 blocks matched (8 by role)")


def test_the_tuning_loop_tells_the_networks_where_the_run_stands():
    model = counting_model()
    blocks = zopeft.discover(model)
    method = zopeft.ZOFineTuner(blocks, moving(blocks, BEND), lr=1e-3, seed=1)
    ids = torch.arange(1, 9)[None]

    def closure():
        return model(input_ids=ids, labels=ids).loss

    twin = Course()
    scales = []
    for _ in range(4):
        base = float(closure())
        method.step(closure)
        record = method.last_record
        assert record.centre == pytest.approx(base, abs=1e-6)
        twin.note(*record.losses, record.centre)
        scales.append(record.scales)
    assert method.forward_passes == 12
    assert method.course.state_dict() == twin.state_dict()
    assert abs(scales[0] - scales[3]).max() > 1e-3
    plain = zopeft.ZOFineTuner(blocks, moving(blocks), lr=1e-3, seed=1)
    plain.step(closure)
    assert plain.forward_passes == 2
    assert plain.last_record.centre is None


def test_the_rate_and_the_bend_share_one_look_at_the_weights():
    model = counting_model()
    blocks = zopeft.discover(model)
    ids = torch.arange(1, 9)[None]

    def closure():
        return model(input_ids=ids, labels=ids).loss

    plain = zopeft.ZOFineTuner(blocks, moving(blocks), lr="auto", seed=1)
    method = zopeft.ZOFineTuner(blocks, moving(blocks, BEND), lr="auto", seed=1)
    for one in (plain, method):
        one.settle(closure)
    looks = []
    for _ in range(7):
        before = method.forward_passes
        look, seen = method.rate.due(), method.rate.measured.looks
        method.step(closure)
        assert method.forward_passes == before + 3
        assert method.last_record.centre is not None
        assert method.rate.measured.looks == seen + look
        looks.append(look)
    assert looks[0] and sum(looks) in (2, 3)
    assert math.isfinite(method.course.reading().bend)
    for _ in range(2):
        plain.step(closure)
    assert math.isnan(plain.course.reading().bend)


def test_a_resumed_run_reads_the_same_course(tmp_path):
    """From a checkpoint, and from there on from the journal."""

    def made(out, **more):
        model = with_lora(counting_model())
        learned = moving(zopeft.discover(model), BEND)
        options = {"method": "zo_finetuner", "learning_rate": 1e-2, "max_steps": 8}
        saving = {"save_strategy": "steps", "save_steps": 3}
        return trainer(model, out, finetuner=learned, **options, **saving, **more)

    whole = made(tmp_path / "whole")
    whole.train()
    assert digest(whole.model) != digest(with_lora(counting_model()))

    class LeftError(Exception):
        pass

    class Leave(Kill):
        def _at(self, event, step):
            if (event, step) == (self.event, self.step):
                raise LeftError

    out = tmp_path / "out"
    with pytest.raises(LeftError):
        made(out, callbacks=[Leave(5, "step_end")]).train()
    resumed = made(out)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == digest(whole.model)
    assert resumed.method.course.state_dict() == whole.method.course.state_dict()
    first, second = (
        [r.scales.tobytes() for r in Journal.open(folder / "journal.bin").records()]
        for folder in (tmp_path / "whole", out)
    )
    assert first == second
    assert len(set(first)) > 5


def test_a_run_replayed_from_its_records_goes_on_with_the_same_scales():
    def made():
        model = counting_model()
        blocks = zopeft.discover(model)
        ids = torch.arange(1, 9)[None]
        method = zopeft.ZOFineTuner(blocks, moving(blocks), lr=1e-3, seed=1)
        return method, lambda: model(input_ids=ids, labels=ids).loss

    method, closure = made()
    records = []
    for _ in range(5):
        method.step(closure)
        records.append(method.last_record)
    assert digest(method.blocks.model) != digest(counting_model())
    replayed, again = made()
    for record in records[:4]:
        replayed.replay(record)
    replayed.step(again)
    assert replayed.last_record.scales.tobytes() == records[4].scales.tobytes()
    assert replayed.last_record.losses == records[4].losses


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"policy": "sate"}, "meta.policy: must be one of constant, state, got 'sate'"),
        (
            {"objective": "paper", "policy": "state"},
            "state needs the signal objective, got 'paper'",
        ),
        (
            {"policy": "state", "objective": "signal", "windows": 60},
            "a run of 100 steps has not two steps for each window, got 60",
        ),
        ({"features": ("log_los",)}, "meta.features: must be one of depth, .*bend, got 'log_los'"),
        (
            {"policy": "state", "objective": "signal", "capacity": "subspace"},
            "meta.capacity: a subspace has constant scales, got 'state'",
        ),
        ({"penalty": -1.0}, "meta.penalty: must be >= 0.0, got -1.0"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        MetaSettings.of(**setting)
