"""The share of signal that a fine-tuner has seen, and the learning rate that begins with it."""

import pytest
import torch
from test_meta import tiny

import zopeft
from zopeft.finetuner import FineTuner
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
