#!/usr/bin/env bash
# mpi.sh: several nodes by Open MPI's mpirun, without a batch system.
#   HOSTFILE=hosts NODES=4 launch/mpi.sh RECIPE --run DIR
#
# Assumes: Open MPI 4 or 5 (of one version on all nodes), ssh without passwords between them, retort at one path on all, and a
# shared file system for DIR. HOSTFILE has a line "name slots=8" per node. GPUS_PER_NODE is 8 unless set.
# - The plugin beside retort is that of Open MPI (tools/build-mpi.sh openmpi).
# - mpirun, told to stop, waits for TERM_S seconds (10) until it sends TERM, at whose announcement ranks save, and as long again
#   until it kills. It also waits so long, twice, when a rank has failed.
# - Where Open MPI picks a wrong fabric: MPIRUN_OPTIONS="--mca pml ob1 --mca btl ^openib".
# - launch/bind.sh binds each rank to the cores nearest to its GPU.
set -euo pipefail
if (($# == 0)) || [[ -z ${HOSTFILE:-} || -z ${NODES:-} ]]; then
  echo "usage: HOSTFILE=hosts NODES=4 launch/mpi.sh RECIPE [options of retort train]" >&2
  exit 64
fi
here=$(cd "$(dirname "$0")" && pwd)
gpus=${GPUS_PER_NODE:-8}
term_s=${TERM_S:-10}
read -ra options <<<"${MPIRUN_OPTIONS:-}"
exec mpirun -n $((NODES * gpus)) --hostfile "$HOSTFILE" --map-by "ppr:$gpus:node" --bind-to none \
  -x PATH -x LD_LIBRARY_PATH -x NCCL_DEBUG="${NCCL_DEBUG:-WARN}" --mca odls_base_sigkill_timeout "$term_s" \
  ${options[@]+"${options[@]}"} "$here/bind.sh" "${RETORT:-retort}" train --set "ranks.term_s=$term_s" "$@"
