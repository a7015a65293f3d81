#!/bin/bash
# Machines that come and go: a run on 1 to 4 of them. Start this on each one; one that starts late
# joins at the next restart, and makes its weights from start and journal without a forward pass.
#
#   RENDEZVOUS=host:29400 bash elastic.sh rows.jsonl /shared/runs/mine
set -euo pipefail
data=$1 out=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "${NODES:-1:4}" --nproc-per-node "${PROCESSES:-1}" --max-restarts "${RESTARTS:-100}" \
  --rdzv-backend c10d --rdzv-id zopeft --rdzv-endpoint "${RENDEZVOUS:-localhost:29400}" \
  -m zopeft tune "${MODEL:-embedded}" --data "$data" --lora \
  --parallel probes method.directions="${DIRECTIONS:-4}" training.ddp_timeout=300 \
  --out "$out" --resume auto "$@"
