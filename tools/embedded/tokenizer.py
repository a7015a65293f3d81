"""The tokenizer: byte-level BPE, so that any text can be written."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from embedded.corpus import PRACTICE, documents
from embedded.markup import parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1536
"""Number of tokens, the 256 bytes and the four special ones among them."""

SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

_SAMPLE = 20_000


def train_tokenizer(seed: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on a sample of the pretraining text.

    Args:
        seed: Seed of the sample.
        max_length: Longest input of the model, in tokens.

    Returns:
        A tokenizer that puts ``<s>`` before every text, as Llama's does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (parse(text)[0] for text in islice(documents(seed), PRACTICE, PRACTICE + _SAMPLE)), trainer
    )
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )
