#!/usr/bin/env bash
# local.sh: all GPUs of this node, or so many CPU ranks.
#   launch/local.sh RECIPE [options of retort train]        RANKS=4 launch/local.sh …
#
# Assumes: mpirun of Open MPI, MPICH or their kin, retort on PATH (RETORT names another) and its MPI plugin beside it
# (tools/build-mpi.sh); without mpirun use torchrun.sh. RANKS is by default the number of GPUs that nvidia-smi or
# CUDA_VISIBLE_DEVICES show. Ranks are not bound to cores: Open MPI would give one core to each of two.
# USR2 to mpirun: a checkpoint, exit code 75; the same command goes on.
set -euo pipefail
(($# > 0)) || { echo "usage: launch/local.sh RECIPE [options of retort train]" >&2; exit 64; }

# gpus: how many the ranks will see.
gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L | grep -c '^GPU' || true
  else
    echo 0
  fi
}

ranks=${RANKS:-$(gpus)}
((ranks > 0)) || { echo "launch/local.sh: no GPU was found; for CPU ranks say how many: RANKS=2 launch/local.sh …" >&2; exit 78; }
exec mpirun -n "$ranks" -bind-to none "${RETORT:-retort}" train "$@"
