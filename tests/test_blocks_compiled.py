"""Names and noise of a compiled model are those of the model itself."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.journal.header import header_of

IDS = (torch.arange(16).view(2, 8) * 7 + 5) % 61


def llama(adapter=None):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    return model if adapter is None else get_peft_model(model, adapter).eval()


def compiled(model):
    return torch.compile(model, backend="eager")


def layer_by_layer(model):
    layers = model.get_submodule("model.layers")
    for index, layer in enumerate(layers):
        layers[index] = compiled(layer)
    return model


def data_parallel(model):
    return torch.nn.DataParallel(model)


LORA = LoraConfig(task_type="CAUSAL_LM", r=2)
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


@pytest.mark.parametrize(
    ("adapter", "wrap"),
    [
        (None, compiled),
        (None, layer_by_layer),
        (None, data_parallel),
        (LORA, compiled),
        (PROMPT, compiled),
    ],
)
def test_a_wrapper_changes_neither_names_nor_addresses(adapter, wrap):
    bare = zopeft.discover(llama(adapter))
    found = zopeft.discover(wrap(llama(adapter)))
    assert len(bare) > 0 and found.space == bare.space
    for one, two in zip(bare, found, strict=True):
        for word in ("name", "key", "role", "base_role", "layer", "kind", "address"):
            assert getattr(one, word) == getattr(two, word)
    assert (
        header_of(zopeft.MeZO(bare, lr=1e-3)).blocks
        == header_of(zopeft.MeZO(found, lr=1e-3)).blocks
    )


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = torch.nn.Embedding(61, 8), torch.nn.Linear(8, 61)

    def forward(self, ids):
        return torch.nn.functional.cross_entropy(self.out(self.table(ids))[:, :-1].mT, ids[:, 1:])


def test_the_same_seed_gives_the_same_weights_compiled():
    weights = []
    for wrap in (lambda model: model, compiled):
        outer = wrap(Small())
        optimizer = zopeft.MeZO(zopeft.discover(outer), lr=1e-1, seed=3)
        for _ in range(3):
            optimizer.step(lambda outer=outer: outer(IDS))
        weights.append([block.data.clone() for block in optimizer.blocks])
    start = [block.data for block in zopeft.discover(Small())]
    assert any(not torch.equal(a, b) for a, b in zip(start, weights[0], strict=True))
    for one, two in zip(*weights, strict=True):
        assert torch.equal(one, two)
