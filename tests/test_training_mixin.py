"""The mixin: zeroth-order steps under somebody else's trainer."""

from dataclasses import dataclass

import pytest
import torch
from training_run import Counting, arguments, digest, tiny_model, trainer, with_lora
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import zopeft
from zopeft.training import ZOTrainer, ZOTrainerMixin, ZOTrainingArguments


@dataclass
class OwnArguments(TrainingArguments):
    """Arguments of another trainer, as trl's: a field, a default of its own, a check."""

    packing: bool = False
    gradient_checkpointing: bool = True

    def __post_init__(self):
        self.checked = True
        super().__post_init__()


class OwnTrainer(Trainer):
    """A trainer that wants its own arguments and does something around every step."""

    def __init__(self, model, args, own=None, **options):
        assert isinstance(args, OwnArguments)
        super().__init__(model=model, args=args, **options)
        self.own, self.seen = own, {"loss": 0, "log": 0}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.seen["loss"] += 1
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs, start_time=None):
        self.seen["log"] += 1
        super().log(logs, start_time)


@dataclass
class MixedArguments(ZOTrainingArguments, OwnArguments):
    pass


class MixedTrainer(ZOTrainerMixin, OwnTrainer):
    pass


def mixed(model, out, **options):
    plain = arguments(out, **options)
    names = ("method", "learning_rate", "max_steps", "per_device_train_batch_size")
    names += ("save_strategy", "logging_steps", "use_cpu", "seed")
    chosen = {name: getattr(plain, name) for name in names}
    args = MixedArguments(output_dir=str(out), packing=True, **chosen)
    return MixedTrainer(model, args, train_dataset=Counting(), eval_dataset=Counting(8), own="kept")


def test_it_is_the_base_of_the_trainer():
    assert zopeft.ZOTrainerMixin is ZOTrainerMixin
    assert issubclass(ZOTrainer, ZOTrainerMixin)
    assert issubclass(ZOTrainer, Trainer)
    assert not issubclass(ZOTrainerMixin, Trainer)


def test_the_steps_are_those_of_the_trainer(tmp_path):
    first, second = with_lora(tiny_model()), with_lora(tiny_model())
    plain = trainer(first, tmp_path / "plain")
    plain.train()
    own = mixed(second, tmp_path / "mixed")
    own.train()
    assert digest(first) == digest(second) != digest(with_lora(tiny_model()))
    assert (tmp_path / "mixed" / "journal.bin").is_file()
    # The other class's parts have run: two probes a step, its argument, its check.
    assert own.own == "kept"
    assert own.args.checked and own.args.packing and not own.args.gradient_checkpointing
    assert own.seen["loss"] == 2 * 12
    assert own.seen["log"] >= 3
    assert own.method.forward_passes == 2 * 12


def test_it_resumes(tmp_path):
    whole, half = with_lora(tiny_model()), with_lora(tiny_model())
    mixed(whole, tmp_path / "whole").train()
    mixed(half, tmp_path / "half", max_steps=5).train()
    again = with_lora(tiny_model())
    resumed = mixed(again, tmp_path / "half")
    resumed.train(resume_from_checkpoint=True)
    assert digest(again) == digest(whole) != digest(with_lora(tiny_model()))
    assert resumed.method.steps == 12


def test_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset
    from transformers import AutoTokenizer

    from zopeft.embedded import MODEL_DIR

    @dataclass
    class ZOSFTConfig(ZOTrainingArguments, trl.SFTConfig):
        pass

    class ZOSFTTrainer(ZOTrainerMixin, trl.SFTTrainer):
        pass

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    args = ZOSFTConfig(
        output_dir=str(tmp_path),
        method="mezo",
        learning_rate=1e-4,
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        save_strategy="no",
    )
    rows = Dataset.from_dict({"text": ["a film", "a good film", "a bad film", "films"] * 2})
    before = digest(model)
    made = ZOSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    made.train()
    assert made.method.forward_passes == 6
    assert digest(model) != before
