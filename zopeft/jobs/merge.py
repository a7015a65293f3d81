"""The job of ``zopeft merge``: an adapter put into its base model's own weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error, run_error
from zopeft.jobs.build import model_label, on_embedded
from zopeft.jobs.folder import Folder
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.jobs.served import load_served
from zopeft.recipe.schema import Recipe
from zopeft.report.summary import peak_bytes, versions

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 32
"""Tokens of the text that both models read."""
APART = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""Largest difference of logits that rounding explains, in units of their standard deviation.

A merged weight is rounded once to the model's dtype, which the adapter beside it is not."""


def merge(
    recipe: Recipe,
    adapter: str,
    out: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Writes a plain model folder that gives what base and adapter give together.

    The merged model is compared with the adapted one on a text before anything is kept.

    Args:
        recipe: The base model; by default the one that the adapter names.
        adapter: A PEFT adapter's folder or hub id.
        out: Folder of the model; None takes a new one below ``runs``.
        overwrite: Whether an earlier result may be replaced.
        listener: Called with reports.

    Returns:
        The summary, ``difference`` among it: the largest of the logits, in units of their
        standard deviation.

    Raises:
        InputError: The adapter cannot be merged: a prompt or prefix, or a quantised base.
        RunError: The merged model is another one; nothing is kept of it.
    """
    with Folder(out, "merged", overwrite, inputs=[adapter, recipe.model.name]) as folder:
        from zopeft.models.quiet import quiet

        started = time.monotonic()
        model, tokenizer, source = load_served(recipe, adapter, listener)
        _check(model, adapter)
        before = _logits(model, tokenizer)
        listener(Progress("merge", note="merging"))
        merged = _merged(model, adapter)
        apart = _apart(_logits(merged, tokenizer), before)
        limit = APART.get(str(merged.dtype).removeprefix("torch."), APART["float32"])
        if not apart <= limit:
            raise run_error(
                "merge",
                "the merged model is not the adapted one (logits differ by "
                f"{apart:.2g} standard deviations, rounding by less than {limit})",
                do="keep it an adapter; tied weights, for one, cannot be merged into",
            )
        summary: dict[str, Any] = {
            "job": "merge",
            "out": str(folder.path),
            "model": model_label(source),
            "adapter": adapter,
            "difference": apart,
            "embedded": on_embedded(source),
        }
        folder.begin(summary)
        with quiet():
            merged.save_pretrained(folder.path)
        tokenizer.save_pretrained(folder.path)
        done = {
            "status": "done",
            "seconds": round(time.monotonic() - started, 3),
            "peak_bytes": peak_bytes(),
            "versions": versions(),
        }
        folder.write(done)
        return {**summary, **done}


def _check(model: Any, adapter: str) -> None:
    """Refuses what cannot be merged."""
    config = model.active_peft_config
    if config.is_prompt_learning:
        kind = config.peft_type.value.lower().replace("_", " ")
        what = f"{kind} stands before the text and cannot be put into weights"
        raise input_error("--adapter", what, adapter, "use it as an adapter")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise input_error(
            "model",
            "merging into a quantised model would round the adapter away",
            do="give the float base as MODEL: zopeft merge ADAPTER BASE",
        )


def _merged(model: Any, adapter: str) -> Any:
    """Returns the base model with the adapter in its weights.

    Raises:
        InputError: PEFT cannot merge it: some types have no merging, or not into these layers.
    """
    kind = str(model.active_peft_config.peft_type.value)
    try:
        return model.merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        what = f"PEFT cannot merge {kind} into this model ({why})"
        raise input_error("--adapter", what, adapter, "use it as an adapter") from error


def _logits(model: Any, tokenizer: Any) -> Tensor:
    """Returns the logits [T, V] of a fixed text, in float32."""
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    usable = sorted(set(range(min(vocabulary, len(tokenizer)))) - set(tokenizer.all_special_ids))
    ids = [usable[(7919 * place) % len(usable)] for place in range(TOKENS)]
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits
    return found[0].float().cpu()


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-12))
