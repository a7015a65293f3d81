"""The digest of a fine-tuner: everything that enters a step, and nothing else."""

import dataclasses

import pytest
import torch
from test_finetuner_controls import Tiny, learned

import zopeft
from zopeft.finetuner import FineTuner, FineTunerConfig
from zopeft.finetuner.digest import ASIDE, digest_like, digest_of

OTHER = {
    "num_layers": 3,
    "features": ("mean", "variance", "loss_plus", "scale", "loss_minus"),
    "inputs": "raw",
    "hidden": 65,
    "sharing": "role",
    "output": "bounded",
    "bound": 0.5,
    "normalise": False,
    "normalisation": "authors",
    "embed_rows": 17,
    "capacity": "subspace",
    "rank": 3,
    "sides": "inputs",
    "mix": 0.5,
    "rows": "frequency",
    "power": 0.25,
    "rows_order": 4,
}


def groups_changed(groups):
    return {
        "order": list(reversed(groups)),
        "role": [dataclasses.replace(groups[0], role="v_proj"), *groups[1:]],
        "layer": [dataclasses.replace(groups[-1], layer=7), *groups[1:]],
        "fewer": groups[:-1],
    }


def test_every_field_of_the_configuration_counts():
    made = FineTuner.initial(zopeft.discover(Tiny()), seed=1)
    before = digest_of(made)
    assert before.startswith("v2_") and len(before) == 19
    names = {one.name for one in dataclasses.fields(FineTunerConfig)}
    assert set(OTHER) | set(ASIDE) | {"groups"} == names
    found = {before}
    for name, value in OTHER.items():
        other = made.copy()
        assert getattr(other.config, name) != value, name
        setattr(other.config, name, value)
        found.add(digest_of(other))
    for groups in groups_changed(made.config.groups).values():
        other = made.copy()
        other.config.groups = groups
        found.add(digest_of(other))
    assert len(found) == 1 + len(OTHER) + 4


def test_what_enters_no_step_does_not_count():
    made = FineTuner.initial(zopeft.discover(Tiny()), seed=1)
    other = made.copy()
    other.config.base_model, other.config.architecture = "another/name", "Another"
    other.config.training, other.config.versions = {"seconds": 3.0}, {"torch": "0"}
    assert digest_of(other) == digest_of(made)


@pytest.mark.parametrize("kind", ["scales", "subspace", "state"])
def test_every_number_counts_and_files_keep_them(kind, tmp_path):
    made = learned(kind, Tiny(), 1, tmp_path)
    before = digest_of(made)
    assert digest_of(FineTuner.from_pretrained(made.save_pretrained(tmp_path / "f"))) == before
    for name in made.nets.state_dict():
        other = made.copy()
        with torch.no_grad():
            other.nets.state_dict()[name].view(-1)[-1] += 1.0
        assert digest_of(other) != before, name
    for index in made.bases:
        other = made.copy()
        basis = other.bases[index]
        other.bases[index] = dataclasses.replace(basis, right=-basis.right)
        assert digest_of(other) != before


def test_a_digest_of_before_is_compared_with_its_like():
    """A number of the version that had no number, of a fine-tuner with fixed numbers."""
    made = FineTuner.initial(zopeft.discover(Tiny()), hidden=4, rows="frequency")
    with torch.no_grad():
        for tensor in made.nets.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) / 64)
    old = digest_of(made, 1)
    assert old == OLD
    assert digest_like(made, old) == old
    assert digest_like(made, digest_of(made)) == digest_like(made, "") == digest_of(made)
    assert digest_like(made, "v3_0123456789abcdef") == digest_of(made)
    assert digest_of(None) == digest_like(None, old) == ""


OLD = "fbcfc78a7e030efd"
