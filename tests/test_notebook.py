"""The notebook's cells run one after the other, and what they make answers."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    space = {}
    for number, cell in enumerate(cells):
        code = "".join(cell["source"]).replace("STEPS = 150", "STEPS = 12")
        exec(compile(code, f"cell {number}", "exec"), space)
    assert space["STEPS"] == 12 and space["trainer"].state.global_step == 12
    assert space["after"]["loss"] != space["before"]["loss"]
    assert set(space["after"]["predicted"]) == {"terrible", "great"}
    assert (tmp_path / "notebook-lora" / "adapter_model.safetensors").is_file()
    assert space["answer"].shape[1] == space["inputs"]["input_ids"].shape[1] + 1
