#!/usr/bin/env bash
# After an operation on a CPU torch's worker threads keep computing nothing, for milliseconds.
#
# Seen with: torch 2.13.0 from PyPI (GNU OpenMP), CPU, two threads.
#
# Guess:     between two operations torch uses no processor: what else a process does on other threads
#            (a kernel without the interpreter's lock, a tokenizer, a thread pool) has the cores.
# Behaviour: the workers of the last operation wait for the next one in a loop, on every core that torch
#            has. While the only thread of Python sleeps 2 ms after a product, the process takes a
#            large part of another core; of a sleep of 20 ms several are burnt. With
#            OMP_WAIT_POLICY=PASSIVE nothing is, but then every operation has to wake its workers.
# So:        threads of one's own beside torch, as many as cores, get half of a core each right after an
#            operation. Noise made between two layers' products took 1.7 times as long on a pool of
#            threads as on torch's own workers. Either run on these (an operation of torch, or
#            GOMP_parallel of the library that torch has loaded), or leave them cores.
#
# Output seen (shares of a core that a process takes while it sleeps, another process running):
#   torch 2.13.0
#                          default  passive
#   2 ms after nothing        0.02     0.02
#   2 ms after a product      0.61     0.02
#   20 ms after a product     0.41     0.00
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$dir"
cat > burnt.py <<'PY'
import time

import torch

torch.set_num_threads(2)
x = torch.randn(512, 512)


def share(seconds, before):
    """Of a core, what the process takes while its only thread of Python sleeps."""
    taken = 0.0
    for _ in range(30):
        before()
        begun = time.process_time()
        time.sleep(seconds)
        taken += time.process_time() - begun
    return taken / 30 / seconds


print(share(0.002, lambda: time.sleep(0.05)), share(0.002, lambda: x @ x), share(0.02, lambda: x @ x))
PY
run() { "$dir/venv/bin/python" -I -W ignore burnt.py; }
spinning=$(env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT -u OMP_NUM_THREADS bash -c "$(declare -f run); dir=$dir; run")
passive=$(env -u OMP_NUM_THREADS OMP_WAIT_POLICY=PASSIVE bash -c "$(declare -f run); dir=$dir; run")
"$dir/venv/bin/python" -I - $spinning $passive <<'PY'
import sys
from importlib.metadata import version

shares = [float(word) for word in sys.argv[1:]]
print("torch", version("torch").split("+")[0])
print(f"{'':<22}{'default':>8} {'passive':>8}")
cases = ("2 ms after nothing", "2 ms after a product", "20 ms after a product")
for case, one, other in zip(cases, shares[:3], shares[3:], strict=True):
    print(f"{case:<22}{one:>8.2f} {other:>8.2f}")
if shares[1] > 0.25 and shares[2] > 0.05 and max(shares[0], *shares[3:]) < 0.15:
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
