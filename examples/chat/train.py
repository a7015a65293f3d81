"""A chat adapter from a file of conversations: tuned, loaded in plain PEFT, and asked.

Run it:  python examples/chat/train.py [STEPS]        (500 steps: about a minute)

``chat.jsonl`` holds two hundred and forty short conversations, one a line, as ``{"messages":
[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}``. The same from
the command line::

    zopeft data show --data chat.jsonl
    zopeft tune --data chat.jsonl --steps 500 --out chat-lora
    zopeft eval --adapter chat-lora --data chat.jsonl --split validation data.metric=f1
    zopeft chat chat-lora

The embedded model has no chat template, so that turns are put into a plain one; a chat model's
own is taken where there is one: leave ``template`` out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.tasks import evaluate

FILE = Path(__file__).with_name("chat.jsonl")
QUESTION = "Dan saw a frog. Kate went to the lake. Dan is a baker.\nWhere did Kate go?"


def train(steps: int, out: Path) -> tuple[float, float]:
    """Tunes a LoRA and saves it with the tokenizer; returns the perplexities before and after."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora).eval()
    data = zopeft.load_data(FILE, tokenizer, model=model, template="plain")
    args = zopeft.ZOTrainingArguments(
        output_dir=str(out),
        method="mezo",
        max_steps=steps,
        per_device_train_batch_size=16,
        logging_steps=50,
        seed=0,
    )
    trainer = zopeft.ZOTrainer(model, args, data.collator, data.train, processing_class=tokenizer)
    before = evaluate(model, tokenizer, data.task, data.rows["validation"])
    trainer.train()
    after = evaluate(model, tokenizer, data.task, data.rows["validation"])
    trainer.save_model(str(out))
    return before["perplexity"], after["perplexity"]


def ask(folder: Path, question: str) -> str:
    """Answers a question with transformers and PEFT alone; the template lies beside the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    model = PeftModel.from_pretrained(base, folder)
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer: str = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip()


def main(steps: int, out: Path) -> None:
    """Tunes, and asks."""
    before, after = train(steps, out)
    print(f"perplexity of the assistant's turns {before:.4g} -> {after:.4g}")
    print(QUESTION)
    print(ask(out, QUESTION))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, Path("chat-lora"))
