"""Files from strangers, made by thousands: every reader must take them or refuse them in one line.

Each reader is given files that were good until something was done to them: bytes flipped, cut,
doubled; lengths and counts that claim more than is there; values of other kinds in JSON and YAML
(with the checksums made right again, where a format has some). It may read them, or raise one of
zopeft's own errors with one line that names the file. Another exception, a crash, more than
`SECONDS` of computing, or memory beyond `MEMORY` is a fault, which is printed with its number:
the same number makes the same file again.

    python tools/fuzz.py                      # 2,000 cases a reader
    python tools/fuzz.py --cases 5000 --keep rows.jsonl   # again and again: it goes on
    python tools/fuzz.py journal --first 4711 --cases 1 --show
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuzz_files import READERS
from fuzz_reader import Reader

from zopeft.errors import ZopeftError

SECONDS = 5
"""The longest that a reader may compute."""
MEMORY = 1 << 30
"""Bytes that a reader may take beyond what the process had; the files are of some kilobytes."""
OUT_OF_MEMORY = 77
ROUND = 500
"""Cases a process."""
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the files are: in memory, if there is such a place."""
COUNTS = ("cases", "read", "refused", "fault", "seconds")
"""What is added up in rows."""
LONGEST = 1200
"""Characters of the longest line."""


class Slow(BaseException):
    """A reader took too long; no reader catches this."""


@contextmanager
def hurried() -> Iterator[None]:
    """Raises `Slow` after `SECONDS`."""

    def late(*_: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(reader: Reader, folder: Path, number: int) -> str:
    """Makes one case and returns what came of it: "read", "refused", or a fault's line."""
    try:
        file = reader.make(folder, random.Random(f"{reader.name} {number}"))
        try:
            with hurried():
                reader.read(file)
        except ZopeftError as error:
            return _judged(str(error), file, reader)
        except Slow:
            return f"more than {SECONDS} s"
        except BaseException as error:
            # Rust's panics are no `Exception`.
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in where if "/zopeft/" in frame.filename] or where
            at = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            return f"{type(error).__name__} at {at}"
        return "read"
    finally:
        reader.clear(folder)


def _judged(line: str, file: Path, reader: Reader) -> str:
    """Whether an error is one line of a bearable length that names the file or its folder."""
    if "\n" in line:
        return "an error of several lines"
    names = (file.name, str(file.parent), *reader.damage, *reader.told)
    if not any(name in line for name in names):
        return f"the file is not named: {line[:80]}"
    if len(line.replace(str(file.parent), "")) > LONGEST:
        return "too long a line"
    return "refused"


def in_a_process(reader: Reader, folder: Path, numbers: range) -> tuple[dict[int, str], int]:
    """Tries cases in a process of their own; one that dies is a fault of the case it died in.

    Returns:
        Number to what came of it, and the bytes that the process grew by at most.
    """
    found: dict[int, str] = {}
    grown = 0
    while len(found) < len(numbers):
        rest = range(numbers.start + len(found), numbers.stop)
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            _work(reader, folder, rest, sink)
        os.close(sink)
        with os.fdopen(source) as lines:
            for number, line in zip(rest, lines, strict=False):
                found[number] = line.rstrip("\n")
            grown = max(grown, int(next(lines, 0)))
        status = os.waitpid(child, 0)[1]
        if status and len(found) < len(numbers):
            code = os.waitstatus_to_exitcode(status)
            died = "out of memory" if code == OUT_OF_MEMORY else f"the process died ({code})"
            found[numbers.start + len(found)] = died
    return found, grown


def _reached(field: str) -> int:
    """Returns bytes that this process may reach: "VmSize" now, "VmPeak" at most so far."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def _work(reader: Reader, folder: Path, numbers: range, sink: int) -> None:
    try:
        here = _reached("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
        with os.fdopen(sink, "w") as lines, open(os.devnull, "w") as nowhere:
            # What libraries print is nobody's business here.
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            # What is here already is not looked through again at each of a library's collections.
            gc.freeze()
            for number in numbers:
                print(tried(reader, folder, number), file=lines, flush=True)
            print(_reached("VmPeak") - here, file=lines, flush=True)
        os._exit(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    finally:
        os._exit(1)


def campaign(
    reader: Reader, first: int, cases: int, seconds: float = float("inf")
) -> dict[str, Any]:
    """Tries many cases of a reader; returns counts, and the first number of each fault.

    Args:
        reader: The reader.
        first: Number of the first case.
        cases: How many, at most.
        seconds: After so many no new process is begun, and the row says how many cases there were.
    """
    begun, counts, faults = time.monotonic(), Counter[str](), dict[str, int]()
    grown = 0
    # Good files are read, and what reads them is loaded, once for all processes.
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        reader.read(reader.good(Path(folder)))
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        for start in range(first, first + cases, ROUND):
            if time.monotonic() - begun > seconds:
                cases = start - first
                break
            numbers = range(start, min(start + ROUND, first + cases))
            found, more = in_a_process(reader, Path(folder), numbers)
            grown = max(grown, more)
            for number, line in found.items():
                counts["fault" if line not in ("read", "refused") else line] += 1
                if line not in ("read", "refused"):
                    faults.setdefault(line, number)
    spent = round(time.monotonic() - begun, 1)
    return {"reader": reader.name, "cases": cases, "first": first, **counts, "faults": faults,
            "grown_mb": round(grown / 2**20), "seconds": spent,
            **({"depth": reader.depth} if reader.depth else {})}  # fmt: skip


def keep(path: Path, row: dict[str, Any]) -> None:
    """Keeps a reader's row: added to the one there is, if it goes on from it, or in its place."""
    rows = kept(path)
    old = rows.get(row["reader"])
    if old and row["first"] == old["first"] + old["cases"]:
        counts = {key: old.get(key, 0) + row.get(key, 0) for key in COUNTS if key in old | row}
        grown = max(old["grown_mb"], row["grown_mb"])
        row = row | {"first": old["first"], **counts, "grown_mb": grown}
        row |= {"faults": row["faults"] | old["faults"]}
    rows[row["reader"]] = row | {"seconds": round(row["seconds"], 1)}
    path.write_text("".join(json.dumps(one) + "\n" for one in rows.values()))


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of a file, reader to row."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["reader"]: row for row in map(json.loads, lines)}


def show(reader: Reader, number: int) -> None:
    """Prints a case's file and what is said of it."""
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        file = reader.make(Path(folder), random.Random(f"{reader.name} {number}"))
        print(file, file.read_bytes()[:2000] if file.is_file() else sorted(file.iterdir()))
        reader.read(file)


def main(argv: list[str] | None = None) -> int:
    """Runs the campaign; returns 1 where there was a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--cases", type=int, default=2000, help="of each reader")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each reader")
    parser.add_argument("--first", type=int, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="file that has a row a reader; goes on from it")
    parser.add_argument("--show", action="store_true", help="print the first case, and read it")
    args = parser.parse_args(argv)
    broken = False
    for name in args.readers or READERS:
        if args.show:
            show(READERS[name], args.first or 0)
            continue
        first = args.first
        if first is None:
            old = kept(args.keep).get(name) if args.keep else None
            first = old["first"] + old["cases"] if old else 0
        row = campaign(READERS[name], first, args.cases, args.seconds)
        print(json.dumps(row), flush=True)
        broken |= bool(row["faults"])
        if args.keep:
            keep(args.keep, row)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
