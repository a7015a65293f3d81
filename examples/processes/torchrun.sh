#!/bin/bash
# One machine, all of its GPUs (or processor cores): each process runs some of a step's probes.
# The same line starts the run, and goes on with it after whatever has ended it.
#
#   bash torchrun.sh rows.jsonl out            # on 2 processes
#   PROCESSES=8 bash torchrun.sh rows.jsonl out --steps 5000
set -euo pipefail
data=$1 out=$2
shift 2
# On processors: a thread for each process, so that they do not share cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
  --standalone --nproc-per-node "${PROCESSES:-2}" --max-restarts "${RESTARTS:-3}" \
  -m zopeft tune "${MODEL:-embedded}" --data "$data" --lora \
  --parallel probes method.directions="${DIRECTIONS:-4}" \
  --out "$out" --resume auto "$@"
