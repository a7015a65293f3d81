"""The PEFT types by name: what makes each, and why the others are refused."""

from __future__ import annotations

from zopeft.registry import Registry

REFUSED = {
    "poly": "its routing needs each row's task at every forward, which rows do not tell; take lora",
    "multitask-prompt": (
        "its prompt needs each row's task at every forward, which rows do not tell; take prompt"
    ),
    "xlora": "it mixes LoRAs that are trained already; tune each of them as lora",
    "cpt": (
        "its forward pass writes its own weights and loss, so a probe would change what it probes;"
        " take prompt"
    ),
    "osf": (
        "it keeps earlier tasks by projecting gradients, which forward passes do not give;"
        " take lora"
    ),
    "shadow": (
        "it trains a second model from a random start, with a loss of its own beside yours;"
        " take lora"
    ),
}
"""PEFT types that zopeft does not make, and why (a saved adapter may still load)."""

PEFT = Registry(
    "peft type",
    {
        "lora": "zopeft.models.tuners:lora",
        "dora": "zopeft.models.tuners:dora",
        "rslora": "zopeft.models.tuners:rslora",
        "adalora": "zopeft.models.svd:adalora",
        "ia3": "zopeft.models.tuners:ia3",
        "vera": "zopeft.models.tuners:vera",
        "loha": "zopeft.models.low_rank:loha",
        "lokr": "zopeft.models.low_rank:lokr",
        "pvera": "zopeft.models.low_rank:pvera",
        "hira": "zopeft.models.low_rank:hira",
        "glora": "zopeft.models.low_rank:glora",
        "gralora": "zopeft.models.low_rank:gralora",
        "delora": "zopeft.models.low_rank:delora",
        "deft": "zopeft.models.low_rank:deft",
        "miss": "zopeft.models.low_rank:miss",
        "lily": "zopeft.models.low_rank:lily",
        "peanut": "zopeft.models.low_rank:peanut",
        "adamss": "zopeft.models.low_rank:adamss",
        "vblora": "zopeft.models.shared:vblora",
        "unilora": "zopeft.models.shared:unilora",
        "tinylora": "zopeft.models.shared:tinylora",
        "randlora": "zopeft.models.shared:randlora",
        "frod": "zopeft.models.shared:frod",
        "oft": "zopeft.models.rotations:oft",
        "boft": "zopeft.models.rotations:boft",
        "hra": "zopeft.models.rotations:hra",
        "road": "zopeft.models.rotations:road",
        "psoft": "zopeft.models.rotations:psoft",
        "fourierft": "zopeft.models.sparse:fourierft",
        "waveft": "zopeft.models.sparse:waveft",
        "c3a": "zopeft.models.sparse:c3a",
        "shira": "zopeft.models.sparse:shira",
        "supertuning": "zopeft.models.sparse:supertuning",
        "beft": "zopeft.models.sparse:beft",
        "trainable-tokens": "zopeft.models.sparse:trainable_tokens",
        "layernorm": "zopeft.models.norms:layernorm",
        "prefix": "zopeft.models.prefixes:prefix",
        "cartridge": "zopeft.models.prefixes:cartridge",
        "prompt": "zopeft.models.prompts:prompt",
        "p-tuning": "zopeft.models.prompts:p_tuning",
        "adaption-prompt": "zopeft.models.prompts:adaption_prompt",
    },
    about={
        "lora": "low-rank matrices on the query and value projections (r 8, alpha 16)",
        "dora": "LoRA with a trained magnitude",
        "rslora": "LoRA scaled by alpha / sqrt(r)",
        "adalora": "three matrices as in a singular value decomposition, at a fixed rank",
        "ia3": "one factor per key, value and feed-forward unit",
        "vera": "shared random matrices with trained vectors",
        "loha": "Hadamard product of low-rank matrices",
        "lokr": "Kronecker product with a low-rank matrix",
        "pvera": "VeRA with a distribution of its vectors, used at its mean",
        "hira": "the weights times a low-rank matrix, entry by entry",
        "glora": "low-rank factors of, beside and into the bias of a weight",
        "gralora": "LoRA in blocks of the weight",
        "delora": "normalised low-rank matrices with a trained strength, started at 0.01",
        "deft": "takes a subspace out of the weights and puts another in",
        "miss": "one small matrix, repeated over the input",
        "lily": "low-rank matrices, one side shared by all layers through a router",
        "peanut": "a low-rank network that reads the weights",
        "adamss": "low-rank updates in clusters of the weights' singular space (scikit-learn)",
        "vblora": "low-rank matrices mixed from one bank of vectors",
        "unilora": "all low-rank matrices from one vector of 256 numbers",
        "tinylora": "64 numbers a layer in the weights' largest singular directions",
        "randlora": "a full-rank sum of random low-rank matrices with trained factors",
        "frod": "sparse rotations and factors in a basis shared by the layers",
        "oft": "rotations of blocks of the input",
        "boft": "rotations as products of sparse ones (butterflies)",
        "hra": "a chain of Householder reflections",
        "road": "rotations of pairs of the output",
        "psoft": "rotations within the weights' largest singular directions",
        "fourierft": "1000 Fourier coefficients of each update, started at zero",
        "waveft": "2592 wavelet coefficients of each update",
        "c3a": "circular convolutions, block by block, started at zero",
        "shira": "a random sparse part of the weights",
        "supertuning": "the largest 1 % of the weights",
        "beft": "biases of the value projections, also where there were none",
        "trainable-tokens": "embeddings of the tokens that peft.options.token_indices names",
        "layernorm": "the weights and biases of all normalisation layers",
        "prefix": "5 trained keys and values per layer, started from real activations",
        "cartridge": "a prefix whose first token stays as it is",
        "prompt": "5 trained embeddings before the text",
        "p-tuning": "5 embeddings from a small trained encoder",
        "adaption-prompt": "10 gated prompt tokens in each attention (Llama, Mistral, GPT-2)",
    },
    refused=REFUSED,
)
"""PEFT type to a function ``(model, **options) -> PeftModel``."""
