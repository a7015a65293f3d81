"""The chat example: from its file to an answer of plain PEFT."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "chat" / "train.py"


def test_the_chat_example_runs_and_answers(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("chat_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sum(1 for _ in module.FILE.open()) == 240
    before, after = module.train(2, tmp_path / "lora")
    assert before > 100 and after > 0 and before != after
    assert (tmp_path / "lora" / "chat_template.jinja").is_file()
    answer = module.ask(tmp_path / "lora", module.QUESTION)
    assert isinstance(answer, str)
    assert not answer.startswith("Dan saw")
