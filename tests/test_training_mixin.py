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


class FilingTrainer(OwnTrainer):
    """Files what it measures as trl's trainers do, by the mode of the model."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.filed, self.computed = {"train": [], "eval": []}, []
        self.model.register_forward_hook(self._note)

    def _note(self, model, inputs, outputs):
        self.computed.append(any(module.training for module in model.modules()))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.filed[mode].append(float(found[0] if return_outputs else found))
        return found

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        filed, prefix = self.filed[mode], "eval_" if mode == "eval" else ""
        means = {f"{prefix}filed": sum(filed) / len(filed)} if filed else {}
        self.filed[mode].clear()
        super().log({**logs, **means}, start_time)


@pytest.mark.parametrize("rate", [1e-3, "auto"])
def test_what_another_trainer_files_by_mode_is_filed_under_training(tmp_path, rate):
    class Filing(ZOTrainerMixin, FilingTrainer):
        pass

    args = MixedArguments(
        output_dir=str(tmp_path),
        learning_rate=rate,
        max_steps=4,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        use_cpu=True,
    )
    own = Filing(with_lora(tiny_model()), args, train_dataset=Counting(), eval_dataset=Counting(8))
    own.train()
    steps = [entry for entry in own.state.log_history if "loss" in entry]
    scores = [entry for entry in own.state.log_history if "eval_loss" in entry]
    assert (len(steps), len(scores)) == (2, 2)
    assert all("filed" in entry and "eval_filed" not in entry for entry in steps)
    assert all("filed" not in entry for entry in scores)
    for entry in scores:
        assert entry["eval_filed"] == pytest.approx(entry["eval_loss"], rel=1e-5)
    alone = own.evaluate()
    assert scores[-1]["eval_filed"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    # Probes run without dropout all the same.
    assert own.computed and not any(own.computed)
    assert not own.model.training


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
