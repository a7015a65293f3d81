"""Meta-trainings that several processes make together, for `rank_cases`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

EVERY_TASK = ("cb", "drop")


def tiny(vocabulary):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def learn(folder, case):
    """Makes one meta-training; returns what it has learned, or what went wrong.

    Args:
        folder: Where what is learned is written to.
        case: Its name, its settings, and ``wrong``: what is wrong with the second process.
    """
    import torch
    from training_run import digest
    from transformers import AutoTokenizer

    import zopeft
    from zopeft.embedded import DATA_DIR, MODEL_DIR
    from zopeft.finetuner.digest import digest_of
    from zopeft.ranks import begin, current
    from zopeft.tasks import load_rows, load_task

    options = {"seed": 3, "lr_model": 0.05, **case}
    del options["name"], options["meta"]
    wrong, rank = options.pop("wrong", ""), int(os.environ.get("RANK", "0"))
    tasks = options.pop("tasks", EVERY_TASK)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = tiny(len(tokenizer))
    rows = {
        name: load_rows(load_task(name), "train", DATA_DIR / name, False, 24, 0) for name in tasks
    }
    seen = []
    if rank == 1 and wrong == "rows":
        rows["cb"] = rows["cb"][1:]
    if rank == 1 and wrong == "settings":
        options["lr_model"] = 0.1
    begin()

    def progress(done, total, figures):
        seen.append(figures["loss"])
        if rank == 1 and done == 3 and wrong == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and done == 3 and wrong == "drift":
            with torch.no_grad():
                model.model.norm.weight += 1.0

    before, sent = digest(model), current().sent
    try:
        found = zopeft.meta_train(model, tasks, tokenizer, rows, progress=progress, **options)
    except Exception as error:
        return {"error": str(error), "kind": type(error).__name__, "steps": len(seen)}
    place = Path(folder, f"{case['name']}-{rank}-of-{os.environ.get('WORLD_SIZE', '1')}")
    found.save_pretrained(place)
    return {
        "digest": digest_of(found),
        "mask": found.mask and found.mask.digest(),
        "restored": digest(model) == before,
        "losses": seen,
        "place": str(place),
        "numbers": sum(p.numel() for p in model.parameters()),
        "sent": current().sent - sent,
        "training": found.config.training,
    }
