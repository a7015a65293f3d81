"""The layers below the first perturbed one run once for both probes, bit for bit."""

from __future__ import annotations

import weakref

import pytest
import torch
from tiny_families import CONFIGS, build
from transformers import AutoTokenizer

import zopeft
from zopeft.blocks import keep_trainable
from zopeft.embedded import MODEL_DIR
from zopeft.models import attach, load_model, resolve
from zopeft.probing.sharing import shared_layers

IDS = (torch.arange(3 * 8).view(3, 8) * 7 + 5) % 61
LAYERS = {
    "llama": "model.layers",
    "qwen2": "model.layers",
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
}
LAST = {
    "llama": "model.norm",
    "qwen2": "model.norm",
    "opt": "model.decoder.final_layer_norm",
    "gpt2": "transformer.ln_f",
}
SPACES = ("upper", "norm", "lora")
CARRIERS = ("flat", "modules")
CASES = [(family, space) for family in CONFIGS for space in SPACES]


def four_layers(family):
    torch.manual_seed(0)
    config = CONFIGS[family]()
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    setattr(config, name, 4)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * 4
    return type(build(family))(config).eval()


def tuned(family="llama", space="upper", carrier="auto", sharing=True):
    """A method that trains the top of a model, and calls of each of its layers."""
    model = four_layers(family)
    if space == "lora":
        model = attach(model, "lora", {"layers_to_transform": [2, 3]}, seed=1)
    else:
        keep_trainable(model, f"^{LAYERS[family]}.3." if space == "upper" else f"^{LAST[family]}")
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=1e-2, seed=4, carrier=carrier)
    assert method.probing.sharing is not None
    if not sharing:
        method.probing.sharing = None
    base = model.get_base_model() if space == "lora" else model
    return method, model, counted(base.get_submodule(LAYERS[family]))


def counted(layers):
    """Counts what is done in each layer, by its last module without children."""
    calls = [0] * len(layers)
    for number, layer in enumerate(layers):
        leaf = next(m for m in layer.modules() if not list(m.children()))
        forward = leaf.forward

        def count(*args, number=number, forward=forward, **kwargs):
            calls[number] += 1
            return forward(*args, **kwargs)

        leaf.forward = count
    return calls


def loss_of(model, ids=IDS, **options):
    return model(input_ids=ids, labels=ids, **options).loss


def losses(method, closure):
    method.estimate(closure)
    return method._pending.losses()


def bits(model):
    return [tensor.clone() for tensor in model.state_dict().values()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_case_is_there():
    assert len(CASES) == 4 * 3


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("family", "space"), CASES)
def test_the_lower_layers_run_once_and_all_bits_are_the_same(family, space, carrier):
    ends = []
    for sharing in (True, False):
        method, model, calls = tuned(family, space, carrier, sharing)
        start = bits(model)
        first = {"upper": 3, "norm": 4, "lora": 2}[space]
        found = [losses(method, lambda: loss_of(model))]  # noqa: B023
        once = 1 if sharing else 2
        assert calls == [once] * first + [2] * (4 - first)
        found.append(losses(method, lambda: loss_of(model, IDS[:2])))  # noqa: B023
        method.apply()
        assert method.forward_passes == 4
        for _ in range(3):
            method.step(lambda: loss_of(model))  # noqa: B023
        ends.append((found, bits(model)))
        assert not equal(bits(model), start)
    assert ends[0][0] == ends[1][0]
    assert equal(ends[0][1], ends[1][1])
    assert found[0][0] != found[0][1]


@pytest.mark.parametrize("options", [{"use_cache": False}, {"attention_mask": torch.ones(3, 8)}])
def test_arguments_of_the_model(options):
    pair = []
    for sharing in (True, False):
        method, model, calls = tuned(sharing=sharing)
        pair.append(losses(method, lambda: loss_of(model, **options)))  # noqa: B023
        assert calls[0] == (1 if sharing else 2)
    assert pair[0] == pair[1]


def test_the_scales_of_a_quantised_model_share_too(tmp_path):
    pytest.importorskip("bitsandbytes")
    four_layers("llama").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path)
    pair = []
    for sharing in (True, False):
        model, _ = load_model(resolve(str(tmp_path)), "float32", False, True, "cpu")
        blocks = zopeft.discover(model, "scales", r"layers\.3\.")
        method = zopeft.MeZO(blocks, lr=1e-3, eps=1e-2, seed=4)
        assert method.probing.sharing.share == 0.75
        if not sharing:
            method.probing.sharing = None
        calls = counted(model.model.layers)
        pair.append(losses(method, lambda: loss_of(model)))  # noqa: B023
        assert calls == ([1] * 3 if sharing else [2] * 3) + [2]
    assert pair[0] == pair[1]


@pytest.mark.parametrize(
    "select", ["embed_tokens", r"layers\.0\.", r"(embed_tokens|layers\.3\.)", r"self_attn|lm_head"]
)
def test_nothing_is_shared_below_the_first_layer_or_an_embedding(select):
    model = four_layers("llama")
    keep_trainable(model, select)
    assert shared_layers(zopeft.discover(model)) is None


@pytest.mark.parametrize("name", ["prompt", "prefix", "p-tuning"])
def test_prompts_share_nothing(name):
    model = attach(four_layers("llama"), name, {})
    assert shared_layers(zopeft.discover(model)) is None


def test_tied_heads_and_models_without_layers_share_nothing():
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    model = type(build("llama"))(config)
    keep_trainable(model, "embed_tokens|lm_head")
    assert shared_layers(zopeft.discover(model)) is None
    assert shared_layers(zopeft.discover(torch.nn.Linear(3, 3))) is None


def test_a_head_of_its_own_shares_all_layers():
    model = attach(four_layers("llama"), "lora", {"target_modules": ["lm_head"]}, seed=1)
    assert shared_layers(zopeft.discover(model)).share == 1.0


def test_a_closure_with_another_batch_at_each_call_runs_apart():
    pair = []
    for sharing in (True, False):
        method, model, calls = tuned(sharing=sharing)
        batches = iter([IDS, IDS.flip(0)])
        pair.append(losses(method, lambda: loss_of(model, next(batches))))  # noqa: B023
        assert calls == [2] * 4
    assert pair[0] == pair[1]


def test_a_batch_written_over_between_the_probes_runs_apart():
    pair = []
    for sharing in (True, False):
        method, model, calls = tuned(sharing=sharing)
        ids = IDS.clone()

        def closure(model=model, ids=ids):
            ids.data.add_(1).remainder_(61)
            return loss_of(model, ids)

        pair.append(losses(method, closure))
        assert calls == [2] * 4
    assert pair[0] == pair[1]


def test_a_closure_that_runs_the_model_several_times():
    pair = []
    for sharing in (True, False):
        method, model, calls = tuned(sharing=sharing)

        def closure(model=model):
            return loss_of(model) - 0.5 * loss_of(model, IDS[:2]) + loss_of(model, IDS[1:])

        pair.append(losses(method, closure))
        assert calls == [3 if sharing else 6] * 3 + [6]
    assert pair[0] == pair[1]


def look(model, way):
    """Has somebody look into the layers, or be at work there."""
    if way == "train":
        model.train()
    elif way == "hook":
        layer = model.get_submodule("model.layers.1.mlp")
        layer.register_forward_hook(lambda module, args, output: None)
    elif way == "config":
        model.config.output_hidden_states = True


@pytest.mark.parametrize("way", ["train", "hook", "config", "argument"])
def test_where_somebody_looks_into_the_layers_all_of_them_run(way):
    pair = []
    for sharing in (True, False):
        method, model, calls = tuned(sharing=sharing)
        look(model, way)

        def closure(model=model):
            if way in ("train", "hook"):
                return loss_of(model)
            wish = {"output_hidden_states": True} if way == "argument" else {}
            output = model(input_ids=IDS, labels=IDS, **wish)
            return output.loss + output.hidden_states[1].square().mean()

        pair.append(losses(method, closure))
        assert calls == [2] * 4
    assert pair[0] == pair[1]


def test_hidden_states_that_are_written_over_are_not_used():
    pair = []
    for sharing in (True, False):
        method, model, calls = tuned(sharing=sharing)
        layer = model.model.layers[3]
        forward = layer.forward

        def greedy(hidden, *args, forward=forward, **kwargs):
            return forward(hidden.mul_(2.0), *args, **kwargs)

        layer.forward = greedy
        pair.append(losses(method, lambda: loss_of(model)))  # noqa: B023
        assert calls == [2] * 4
    assert pair[0] == pair[1]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_nothing_is_kept_and_all_is_as_before(failing):
    method, model, _ = tuned(carrier="modules")
    before = bits(model)
    dress = [(set(m.__dict__), len(m._forward_hooks)) for m in model.modules()]
    seen = []
    layer = model.model.layers[3]

    def watched(hidden, *args, forward=layer.forward, **kwargs):
        seen.append(weakref.ref(hidden))
        return forward(hidden, *args, **kwargs)

    layer.forward = watched

    def closure():
        loss = loss_of(model)
        if len(seen) == failing:
            raise KeyboardInterrupt
        return loss

    if failing:
        with pytest.raises(KeyboardInterrupt):
            method.estimate(closure)
    else:
        method.estimate(closure)
    del layer.forward
    assert len(seen) == (failing or 2)
    assert [ref() for ref in seen] == [None] * len(seen)
    assert [(set(m.__dict__), len(m._forward_hooks)) for m in model.modules()] == dress
    assert equal(bits(model), before)


def test_a_compiled_model_is_left_alone_once_it_is_known(monkeypatch):
    method, model, calls = tuned()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = losses(method, lambda: loss_of(model))
    assert calls == [2] * 4 and method.probing.sharing.compiled
    layer, swapped = model.model.layers[0], []

    def closure():
        swapped.append("forward" in layer.__dict__)
        return loss_of(model)

    other, twin, _ = tuned(sharing=False)
    assert found == losses(other, lambda: loss_of(twin))
    method.apply()
    method.estimate(closure)
    assert swapped == [False, False]
