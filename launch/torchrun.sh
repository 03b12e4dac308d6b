#!/usr/bin/env bash
# torchrun.sh: the launcher of PyTorch, where there is no MPI. On each node:
#   launch/torchrun.sh RECIPE --run DIR                                                           one node, all GPUs
#   NODES=4 NODE=0 MASTER_ADDR=n01 launch/torchrun.sh RECIPE --run DIR                            NODE=1, 2, 3 on the others
#
# Assumes: torchrun on PATH (a PyTorch for the CPU is enough), retort on PATH (RETORT names another), RANKS per node (default: as
# many as nvidia-smi shows GPUs), MASTER_PORT (default 29500) free on MASTER_ADDR and reachable from all nodes.
# - torchrun passes TERM on and kills after 30 s; it does not pass USR1 and USR2 on: send them to a rank, all agree.
# - It returns 1 whatever code a rank ended with; the codes are in DIR/logs/exit-<rank>.json.
# - It starts nothing anew here (--max-restarts 0): the same command goes on from the last checkpoint.
set -euo pipefail
(($# > 0)) || { echo "usage: launch/torchrun.sh RECIPE [options of retort train]" >&2; exit 64; }
ranks=${RANKS:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)}
((ranks > 0)) || { echo "launch/torchrun.sh: no GPU was found; for CPU ranks say how many: RANKS=2" >&2; exit 78; }
nodes=${NODES:-1}
where=(--master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}")
exec torchrun --no-python --max-restarts 0 --nnodes "$nodes" --node-rank "${NODE:-0}" --nproc-per-node "$ranks" \
  "${where[@]}" -- "${RETORT:-retort}" train "$@" # without -- it takes our --run for an option of its own
