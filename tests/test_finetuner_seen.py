"""What a fine-tuner has seen of signal and curvature, and the run that begins with it."""

import pytest
import torch
from test_meta import tiny

import zopeft
from zopeft.finetuner import FineTuner
from zopeft.journal.header import header_of
from zopeft.optim.rate import SHARE, SHARE_LEAST, SHARE_MOST


def taught(blocks, signal, energy, sharing="block"):
    """A fine-tuner whose meta-training has seen these S and E, one a block."""
    found = FineTuner.initial(blocks, sharing=sharing)
    found.config.training["statistics"] = {
        block.name: {"role": block.role, "signal": s, "energy": e}
        for block, s, e in zip(blocks, signal, energy, strict=True)
    }
    return found


@pytest.mark.parametrize("sharing", ["block", "role"])
def test_the_share_by_hand(sharing, tmp_path):
    blocks = zopeft.discover(tiny())
    count = len(blocks)
    energy = [1.0 + i for i in range(count)]
    signal = [0.3 * e for e in energy]
    # Below the floor, and unknown.
    signal[1], signal[2] = -5.0, float("nan")
    scales = torch.linspace(0.5, 2.0, count)
    kept = [i for i in range(count) if i != 2]
    floored = [max(signal[i], 0.01 * energy[i]) for i in kept]
    power = scales.square().tolist()
    wanted = sum(power[i] * s for i, s in zip(kept, floored, strict=True))
    wanted /= sum(power[i] * energy[i] for i in kept)
    finetuner = taught(blocks, signal, energy, sharing)
    assert finetuner.signal_share(finetuner.match(blocks), scales) == pytest.approx(wanted)
    again = FineTuner.from_pretrained(finetuner.save_pretrained(tmp_path / "finetuner"))
    assert again.signal_share(again.match(blocks), scales) == pytest.approx(wanted)


def test_an_adapter_takes_the_share_of_the_tensors_it_stands_on():
    full = zopeft.discover(tiny())
    signal = [0.4 if block.role in ("q_proj", "v_proj") else 0.0 for block in full]
    finetuner = taught(full, signal, [1.0] * len(full))
    adapted = zopeft.discover(tiny(lora=True))
    match = finetuner.match(adapted)
    assert finetuner.signal_share(match, torch.ones(len(adapted))) == pytest.approx(0.4)


@pytest.mark.parametrize("statistics", [None, {}, [1, 2], {"a": 1}, {"a": {"signal": "x"}}])
def test_without_statistics_there_is_no_share(statistics):
    blocks = zopeft.discover(tiny())
    finetuner = FineTuner.initial(blocks)
    finetuner.config.training["statistics"] = statistics
    assert finetuner.signal_share(finetuner.match(blocks), torch.ones(len(blocks))) is None


@pytest.mark.parametrize(
    ("share", "begun"), [(0.3, 0.3), (0.02, SHARE_LEAST), (0.9, SHARE_MOST), (None, SHARE)]
)
def test_a_learning_rate_begins_with_the_share(share, begun):
    model = tiny()
    blocks = zopeft.discover(model)
    energy = [2.0] * len(blocks)
    finetuner = FineTuner.initial(blocks)
    if share is not None:
        finetuner = taught(blocks, [share * e for e in energy], energy)
    method = zopeft.ZOFineTuner(blocks, finetuner, lr="auto", seed=1)
    # A bowl, so that there is a curvature.
    method.calibrate(lambda: sum(block.parameter.double().square().sum() for block in blocks))
    assert method.rate.share == pytest.approx(begun)
    assert ("from the fine-tuner" in method.lr_reason) == (share is not None)
    assert f"signal share {begun:.2g}" in method.lr_reason


@pytest.mark.parametrize("sharing", ["block", "role"])
def test_probes_reach_no_further_than_the_loss_is_about_straight(sharing):
    blocks = zopeft.discover(tiny())
    count = len(blocks)
    finetuner = taught(blocks, [1.0] * count, [2.0] * count, sharing)
    statistics = finetuner.config.training["statistics"]

    def eps(curvature, **options):
        for entry in statistics.values():
            entry |= {"curvature": curvature, "scale": 2.0}
        # Not seen, and bent downwards: neither counts.
        statistics[blocks[0].name]["curvature"] = float("nan")
        statistics[blocks[1].name]["curvature"] = -1e9
        return zopeft.ZOFineTuner(blocks, finetuner, lr=1e-3, **options).eps

    # 4 h (N - 2) eps^2 / 2 is two nats at the most.
    assert eps(1e9) == pytest.approx((4.0 / (4e9 * (count - 2))) ** 0.5)
    assert eps(1e3) == 1e-3 and eps(1e9, eps=5e-3) == 5e-3
    assert zopeft.MeZO(blocks, lr=1e-3).eps == 1e-3
    # Its controls go by the same, but the one that has seen nothing.
    assert zopeft.ZOFineTuner(blocks, finetuner.shuffled(0), lr=1e-3).eps == eps(1e9)
    assert zopeft.ZOFineTuner(blocks, finetuner.untrained(0), lr=1e-3).eps == 1e-3
    adapted = zopeft.discover(tiny(lora=True))
    assert zopeft.ZOFineTuner(adapted, finetuner, lr=1e-3).eps == 1e-2
    # A journal's header has it, so that a run is rebuilt with it.
    assert header_of(zopeft.ZOFineTuner(blocks, finetuner, lr=1e-3)).options["eps"] == eps(1e9)


def test_a_steep_quadratic_is_measured_straight_where_the_usual_step_is_not():
    blocks = zopeft.discover(tiny())
    finetuner = taught(blocks, [1.0] * len(blocks), [2.0] * len(blocks))
    for entry in finetuner.config.training["statistics"].values():
        entry |= {"curvature": 1e8, "scale": 1.0}
    start = [block.parameter.detach().clone() for block in blocks]

    def loss():
        # Level from a distance of 1e-4 on, as a loss of a sure model is: 1e4 steep inside.
        away = sum(((b.parameter - s) * 1e4).sum() for b, s in zip(blocks, start, strict=True))
        return torch.tanh(away / 100.0) * 100.0

    slopes = {}
    for eps in (None, 1e-3):
        method = zopeft.ZOFineTuner(blocks, finetuner, lr=1e-12, seed=1, eps=eps)
        method.step(loss)
        slopes[eps] = abs(method.last_record.projected_grads[0])
    method = zopeft.ZOFineTuner(blocks, finetuner, lr=1e-12, seed=1, eps=1e-7)
    method.step(loss)
    true = abs(method.last_record.projected_grads[0])
    assert slopes[None] == pytest.approx(true, rel=0.1) and slopes[1e-3] < 0.5 * true
