"""What a recipe may say: one checked dataclass a section.

The defaults here are the defaults of the command line. A field's metadata holds its range
and, where its value is a name, the registry that knows the name; `zopeft.recipe.check`
reads both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from zopeft.recipe.bench_schema import BenchSection, Job
from zopeft.recipe.data_schema import DataSection
from zopeft.recipe.executor_schema import ExecutorSection
from zopeft.recipe.fields import named, number
from zopeft.recipe.meta_schema import MetaSection
from zopeft.recipe.objective_schema import ObjectiveSection
from zopeft.recipe.training_schema import TrainingSection

JOBS = ("tune", "meta-train", "eval", "bench")
FULL = "full"
"""The name that stands in ``peft.name`` for tuning the model's own weights."""
BITFIT = "bitfit"
"""The name for tuning the model's own biases alone."""
SCALES = "scales"
"""The name for tuning the scales of a quantised model."""
BARE = {
    FULL: "the model's own weights",
    BITFIT: "the model's own biases",
    SCALES: "the scales of a quantised model's layers",
}
"""Names that put no adapter on the model, and what they train; the result is a model."""


@dataclass(frozen=True)
class ModelSection:
    """Which model, and how it is held.

    Attributes:
        name: Alias, hub id or folder; None is the embedded model.
        dtype: Number format of the weights; "auto" takes the file's.
        load_in_8bit: Quantise to 8 bit while loading.
        load_in_4bit: Quantise to 4 bit while loading.
        quant_type: The 16 values of a 4-bit weight: "nf4", those of a normal distribution,
            or "fp4", a 4-bit float's.
        double_quant: Quantise the 4-bit weights' scales to 8 bit, too.
        device: Device map ("cpu", "cuda", "auto"); None chooses. "auto" spreads the model
            over all GPUs, then the CPU, then the disk.
        offload_folder: Folder for weights that find no other room, and for copies of those
            that are trained; needed to train weights that are on disk.
        max_memory: Most memory that "auto" takes of a device, by "0", "1", ... and "cpu"
            ("10GB").
        sharded: How the processes of torchrun hold the model: "none" (each all of it),
            "tensor" (tensor parallelism, by the model's own plan) or "fsdp" (FSDP2: each
            layer is gathered for its forward pass).
    """

    name: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = False
    device: str | None = None
    offload_folder: str | None = None
    max_memory: dict[str, Any] = field(default_factory=dict)
    sharded: Literal["none", "tensor", "fsdp"] = "none"


@dataclass(frozen=True)
class PeftSection:
    """Which weights are trained.

    Attributes:
        name: A PEFT type, or "full" for the model's own weights, "bitfit" for its biases,
            "scales" for the scales of its quantised layers; None is lora for tune and full
            for meta-train.
        options: Arguments of the PEFT type (``r``, ``target_modules``, ...).
        select: Keeps only the blocks whose names match this expression.
    """

    name: str | None = named(None, "peft")
    options: dict[str, Any] = field(default_factory=dict)
    select: str | None = None


@dataclass(frozen=True)
class TaskSection:
    """What is learned, and from which rows.

    Attributes:
        name: A registered task, or a task's YAML file; None with `data` is own data, whose
            columns tell what it is.
        data: File, folder or, without a name, data set on the hub. A named task's has its
            columns; None takes the hub's data, or the embedded samples with the embedded model.
        train_examples: At most so many training rows; None takes all. Own data and tasks of
            own files take all where nothing is said.
        eval_examples: At most so many validation rows, likewise.
        max_length: Longest example, in tokens.
        loss: "answer" teaches the tokens of the right answer, "choice" to prefer the right
            option (MeZO's classification loss); None takes the task's own.
    """

    name: str | None = named(None, "task")
    data: str | None = None
    train_examples: int | None = number(1000, least=1)
    eval_examples: int | None = number(200, least=1)
    max_length: int = number(512, least=8)
    loss: Literal["answer", "choice"] | None = None


@dataclass(frozen=True)
class MethodSection:
    """How a step is made.

    Attributes:
        name: Optimizer; None is zo_finetuner with a fine-tuner and mezo without.
        finetuner: Folder or hub id of a learned fine-tuner.
        lr: Learning rate; "auto" measures one, and follows the run.
        eps: Finite-difference step, in the units of the weights; None takes the space's
            default (1e-3; LoRA 1e-2; prompts and prefixes 1e-1).
        noise: What the random directions are made of.
        rank: Rank of the matrices' directions with low_rank noise.
        rows: "frequency" scales rows of token embeddings by how often their tokens occur in
            the training data, "none" does not; None is the fine-tuner's choice.
        weight_decay: Decay of the weights, as a share of lr.
        clip: Largest projected gradient, in multiples of its running size; 0 for none; null
            for 2 with lr "auto", else none.
        max_bad_steps: Stop after so many steps in a row without a finite loss.
        probes: "stacked" runs all probes in one forward (adapters that allow it, and full
            weights with low_rank noise), "separate" each in its own; "auto" chooses by the
            size of the batch.
        directions: Random directions a step, whose updates are averaged.
        sides: "two" forward passes a direction, or "one" and one more at the weights.
        normalise: Divide differences of losses by their spread over the directions (FZOO);
            lr is then in the units of the weights, whatever the loss.
        options: The method's own options, such as ``smooth`` of hizoo; each can also stand in
            the section itself (``method.smooth=1e-6``).
    """

    name: str | None = named(None, "method")
    finetuner: str | None = None
    lr: float | Literal["auto"] = number("auto", least=0.0)
    eps: float | None = number(None, above=0.0)
    noise: str = named("gaussian", "noise")
    rank: int = number(4, least=1, most=64)
    rows: Literal["none", "frequency"] | None = None
    weight_decay: float = number(0.0, least=0.0)
    clip: float | None = number(None, least=0.0)
    max_bad_steps: int = number(10, least=1)
    probes: Literal["auto", "stacked", "separate"] = "auto"
    directions: int = number(1, least=1, most=64)
    sides: Literal["two", "one"] = "two"
    normalise: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A whole job, checked.

    Attributes:
        job: What is done: "tune", "meta-train", "eval" or "bench".
        about: One line on what the recipe is for.
        model: Which model.
        peft: Which weights.
        task: Which data.
        data: How own data is read.
        objective: What is optimised.
        method: Which optimizer.
        training: How long.
        executor: Who finds the losses of a step.
        meta: How a fine-tuner is learned.
        bench: Who is compared with whom.
        models: Settings of single models, laid over the rest when the model is chosen.
        spaces: Settings of single spaces (``full``, ``lora``), laid over the rest when the
            space is chosen.
        tasks: Settings of single tasks, laid over the rest when the task is chosen.
        small: Sections laid over all that for the recipe's small twin.
    """

    job: Job = "tune"
    about: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    peft: PeftSection = field(default_factory=PeftSection)
    task: TaskSection = field(default_factory=TaskSection)
    data: DataSection = field(default_factory=DataSection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    method: MethodSection = field(default_factory=MethodSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    executor: ExecutorSection = field(default_factory=ExecutorSection)
    meta: MetaSection = field(default_factory=MetaSection)
    bench: BenchSection = field(default_factory=BenchSection)
    models: dict[str, Any] = field(default_factory=dict)
    spaces: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)

    @property
    def owns_data(self) -> bool:
        """True where the data is the user's own, and its columns tell what it is."""
        return self.task.name is None and bool(self.places)

    @property
    def places(self) -> list[str]:
        """The files, folders and hub ids that the data section or ``task.data`` names."""
        return list(self.data.mixture) or ([self.task.data] if self.task.data is not None else [])

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain dicts, lists and numbers, ready for JSON or YAML."""
        plain = asdict(self)
        plain["meta"]["tasks"] = list(self.meta.tasks)
        plain["meta"]["features"] = list(self.meta.features)
        for overlay in ("models", "spaces", "tasks", "small"):
            plain.pop(overlay)
        plain["data"]["labels"] = list(self.data.labels)
        if self.data == DataSection():
            # As in records from before there was own data.
            plain.pop("data")
        if self.executor == ExecutorSection():
            plain.pop("executor")
        if self.objective == ObjectiveSection():
            plain.pop("objective")
        else:
            plain["objective"]["rewards"] = list(self.objective.rewards)
            plain["objective"]["weights"] = list(self.objective.weights)
        bench = plain.pop("bench")
        if self.job == "bench":
            plain["bench"] = {k: list(v) if isinstance(v, tuple) else v for k, v in bench.items()}
        if self.job != "meta-train":
            plain.pop("meta")
        else:
            plain["training"] = {"seed": self.training.seed}
        return plain


SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "peft": PeftSection,
    "task": TaskSection,
    "data": DataSection,
    "objective": ObjectiveSection,
    "method": MethodSection,
    "executor": ExecutorSection,
    "training": TrainingSection,
    "meta": MetaSection,
    "bench": BenchSection,
}
