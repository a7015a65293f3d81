"""The pages of first uses: each there, without paths or times, and every command one that runs."""

import re
import shlex

import pytest
from first_uses import PAGES, ROOT, USES, neutral

from zopeft.recipe.load import load_recipe


@pytest.mark.parametrize("name", USES)
def test_a_page_is_what_its_use_says(name):
    text, use = (PAGES / f"{name}.md").read_text(encoding="utf-8"), USES[name]
    assert text.startswith(f"# {use.title}\n")
    for step in use.steps:
        if isinstance(step, str):
            assert f"$ {step}\n" in text
            words = shlex.split(step)
            flags = [word for word in words if "=" in word and not word.startswith("-")]
            assert load_recipe("tune", None, flags, {"task.data": ("--data", "x.jsonl")})
        else:
            assert f"`{step[0]}`:\n\n```py\n{step[1].rstrip()}\n```" in text
    # The last thing is an answer of plain PEFT.
    answer = text.rpartition("$ python load.py\n")[2].removesuffix("\n```\n")
    assert re.search(r"\w", answer)
    assert str(ROOT) not in text and "/tmp/" not in text and "Traceback" not in text
    assert not re.search(r"\d s/step|ETA \d|it/s\]", text)


def test_times_are_left_out_and_of_a_stage_the_first_and_the_last_line_stay(tmp_path):
    said = "\n".join(
        f"tune {n}/40 loss 1.5  lr 0.1  0.0{n} s/step  ETA 0:00:0{n % 10}" for n in (10, 20, 30, 40)
    )
    assert neutral(f"{said}\nout {tmp_path}/a", tmp_path).splitlines() == [
        "tune 10/40 loss 1.5  lr 0.1  ... s/step  ETA ...",
        "tune 40/40 loss 1.5  lr 0.1  ... s/step  ETA ...",
        "out ./a",
    ]
