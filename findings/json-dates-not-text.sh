#!/usr/bin/env bash
# load_dataset("json") reads text that looks like dates as datetimes, even where told "string".
#
# Seen with: datasets 5.2.0, pyarrow 26.0.1.
#
# Guess:     JSON tells strings from other values, so what stands in quotes is loaded as a string;
#            if types are inferred, features= with Value("string") settles it.
# Behaviour: a column whose every string is an ISO date or time (nulls aside) is inferred as
#            timestamp[s], within SQuAD's nested answers too. With features= the timestamp is
#            cast back to text and comes out as another string: "1969-07-20 00:00:00". One other
#            string in the file keeps all of it as it is, and so do CSV and Dataset.from_list. So
#            what a row reads as depends on the rows beside it: a few rows cut from a file, or the
#            questions of one kind, load otherwise than the whole.
# So:        prompts, targets and exact match are others, with no error. Read JSON lines of short
#            answers with json.loads and Dataset.from_list, or check that columns are text.
#
# Output seen:
#   datasets 5.2.0 pyarrow 26.0.1
#   JSON, two dates            datetime  1969-07-20 00:00:00
#   JSON, SQuAD's form         datetime  1969-07-20 00:00:00
#   JSON, and one more answer  str       1969-07-20
#   JSON, features given       str       1969-07-20 00:00:00
#   CSV, two dates             str       1969-07-20
#   Dataset.from_list          str       1969-07-20
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
cd "$dir"
HF_HUB_OFFLINE=1 HF_HOME="$dir/hf" "$dir/venv/bin/python" -I -W ignore - <<'PY'
import csv
import json
from importlib.metadata import version

import datasets

datasets.disable_progress_bars()
print("datasets", version("datasets"), "pyarrow", version("pyarrow"))
MOON, WALL = "1969-07-20", "1989-11-09"
flat = [{"question": "the moon?", "answer": MOON}, {"question": "the wall?", "answer": WALL}]
other = [{"question": "the end?", "answer": "unknown"}]
nested = [{"question": row["question"], "answers": {"text": [row["answer"]], "answer_start": [0]}}
          for row in flat]
text = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("string")})


def read(name, rows, kind="json", **more):
    with open(name, "w", newline="") as file:
        if kind == "json":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return datasets.load_dataset(kind, data_files=name, split="train", **more)[0]


found = {
    "JSON, two dates": read("flat.jsonl", flat)["answer"],
    "JSON, SQuAD's form": read("nested.jsonl", nested)["answers"]["text"][0],
    "JSON, and one more answer": read("other.jsonl", flat + other)["answer"],
    "JSON, features given": read("given.jsonl", flat, features=text)["answer"],
    "CSV, two dates": read("flat.csv", flat, kind="csv")["answer"],
    "Dataset.from_list": datasets.Dataset.from_list(flat)[0]["answer"],
}
for what, answer in found.items():
    print(f"{what:<26} {type(answer).__name__:<9} {answer}")
dates = ("JSON, two dates", "JSON, SQuAD's form", "JSON, features given")
if all(str(answer) == MOON + " 00:00:00" * (what in dates) for what, answer in found.items()):
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
