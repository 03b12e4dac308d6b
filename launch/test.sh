#!/usr/bin/env bash
# Tests of the scripts in this folder, with programs that stand in for nvidia-smi, numactl, scontrol, srun, torchrun and retort,
# and a sysfs of files. mpirun is the real one where local.sh is tested, of Open MPI and of MPICH; skipped aloud where it is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
passed=0

# expect WHAT GOT WANTED
expect() {
  if [[ $2 != "$3" ]]; then
    printf 'launch/test.sh: FAILED: %s\n  got:    %s\n  wanted: %s\n' "$1" "$2" "$3" >&2
    exit 1
  fi
  passed=$((passed + 1))
}

# program FOLDER NAME: a program of standard input's text.
program() {
  mkdir -p "$1"
  { echo "#!$BASH"; cat; } >"$1/$2"
  chmod +x "$1/$2"
}

syntax() {
  local file
  for file in "$here"/*.sh "$here"/*.sbatch; do bash -n "$file"; done
  if command -v shellcheck >/dev/null; then shellcheck "$here"/*.sh "$here"/*.sbatch; else echo "skipped: there is no shellcheck"; fi
  if command -v python3 >/dev/null; then python3 -c "compile(open('$here/package.py').read(), 'package.py', 'exec')"; fi
  expect "scripts are executable" "$(find "$here" \( -name '*.sh' -o -name '*.sbatch' \) ! -perm -u+x)" ""
}

# --- bind.sh: two GPUs, each beside a NIC on a bus of its own; one more NIC without a link.
pci() { # BUS ADDRESS NODE
  local folder=$t/sys/devices/pci0000:$1/0000:$1:01.0/$2
  mkdir -p "$folder" "$t/sys/bus/pci/devices"
  echo "$3" >"$folder/numa_node"
  ln -sfn "$folder" "$t/sys/bus/pci/devices/$2"
}
nic() { # BUS ADDRESS NAME STATE
  local folder=$t/sys/devices/pci0000:$1/0000:$1:01.0/$2/infiniband/$3
  mkdir -p "$folder/ports/1" "$t/sys/class/infiniband"
  echo "$4" >"$folder/ports/1/state"
  ln -sfn ../.. "$folder/device"
  ln -sfn "$folder" "$t/sys/class/infiniband/$3"
}

bind_world() {
  local name
  pci 00 0000:1b:00.0 0
  pci 80 0000:9b:00.0 1
  nic 00 0000:1c:00.0 mlx5_0 "4: ACTIVE"
  nic 80 0000:9c:00.0 mlx5_1 "1: DOWN"
  nic 80 0000:9d:00.0 mlx5_2 "4: ACTIVE"
  mkdir -p "$t/tools" "$t/none"
  for name in bash cat grep realpath wc env true; do ln -s "$(command -v "$name")" "$t/tools/$name"; done
  program "$t/smi" nvidia-smi <<'S'
echo "0, GPU-aaaa, 00000000:1B:00.0"
echo "1, GPU-bbbb, 00000000:9B:00.0"
S
  program "$t/numactl" numactl <<'S'
bound="$1 $2"; shift 2
[[ $1 == true ]] && exit "${NUMACTL_REFUSES:-0}"
BOUND=$bound exec "$@"
S
  program "$t/tools" show <<'S'
echo "${BOUND:-free}|${UCX_NET_DEVICES:-}|${CUDA_DEVICE_ORDER:-}|$*"
S
}

# bound FOLDERS VARIABLE…: what the program sees under bind.sh with these folders of programs; its notes go to $t/notes.
bound() {
  local path=$t/tools folder
  for folder in $1; do path+=:$t/$folder; done
  shift
  env -i PATH="$path" SYSFS="$t/sys" "$@" "$here/bind.sh" show a "b c" 2>"$t/notes"
}

bind() {
  bind_world
  local all="smi numactl" order=PCI_BUS_ID
  local first="--cpunodebind=0 --preferred=0|mlx5_0:1|$order|a b c" second="--cpunodebind=1 --preferred=1|mlx5_2:1|$order|a b c"
  expect "rank 0 of Open MPI" "$(bound "$all" OMPI_COMM_WORLD_LOCAL_RANK=0)" "$first"
  expect "rank 1 of MPICH; a NIC without a link is left out" "$(bound "$all" MPI_LOCALRANKID=1)" "$second"
  expect "note" "$(head -n 1 "$t/notes")" "bind.sh: local rank 1: GPU 0000:9b:00.0, NUMA node 1"
  expect "MPI before SLURM" "$(bound "$all" SLURM_LOCALID=1 OMPI_COMM_WORLD_LOCAL_RANK=0)" "$first"
  expect "visible GPUs in another order" "$(bound "$all" SLURM_LOCALID=0 CUDA_VISIBLE_DEVICES=1,0)" "$second"
  expect "one visible GPU, by UUID" "$(bound "$all" LOCAL_RANK=5 CUDA_VISIBLE_DEVICES=GPU-bb)" "$second"
  expect "own NIC and order stay" "$(bound "$all" LOCAL_RANK=0 UCX_NET_DEVICES=x:1 CUDA_DEVICE_ORDER=FASTEST_FIRST)" \
    "--cpunodebind=0 --preferred=0|x:1|FASTEST_FIRST|a b c"
  local free="free||$order|a b c"
  expect "no rank" "$(bound "$all")" "$free"
  expect "no rank, note" "$(<"$t/notes")" "bind.sh: local rank ?: no launcher gives a local rank, not bound"
  expect "no nvidia-smi" "$(bound numactl LOCAL_RANK=0)" "$free"
  expect "no such GPU" "$(bound "$all" LOCAL_RANK=2)" "$free"
  expect "no such GPU, note" "$(<"$t/notes")" 'bind.sh: local rank 2: nvidia-smi shows no GPU "2", not bound'
  expect "no numactl: the NIC all the same" "$(bound smi LOCAL_RANK=0)" "free|mlx5_0:1|$order|a b c"
  expect "no numactl, note" "$(head -n 1 "$t/notes")" \
    "bind.sh: local rank 0: GPU 0000:1b:00.0: no numactl (Debian: apt-get install numactl), not bound to NUMA node 0"
  expect "a node outside the cpuset" "$(bound "$all" LOCAL_RANK=1 NUMACTL_REFUSES=1)" "free|mlx5_2:1|$order|a b c"
  echo -1 >"$t/sys/bus/pci/devices/0000:1b:00.0/numa_node"
  expect "no NUMA" "$(bound "$all" LOCAL_RANK=0)" "free|mlx5_0:1|$order|a b c"
  expect "no sysfs" "$(bound "$all" LOCAL_RANK=1 SYSFS="$t/none")" "$free"
  expect "code of the program" "$(env LOCAL_RANK=0 "$here/bind.sh" bash -c 'exit 75' 2>/dev/null || echo $?)" 75
}

# --- sbatch scripts: the stand-in of mpirun and srun ends with CODE, or waits for a signal and then ends with it.
sbatch_world() {
  program "$t/slurm" mpirun <<'S'
echo "$*" >>"$ARGUMENTS"
[[ -z ${READY:-} ]] && exit "$CODE"
trap 'kill $!; exit "$CODE"' "$AT"
sleep 60 & echo ready >"$READY"
wait $!
exit 99
S
  cp "$t/slurm/mpirun" "$t/slurm/srun"
  program "$t/slurm" scontrol <<'S'
echo "$*" >>"$REQUEUED"
S
}

# job SCRIPT CODE VARIABLE…: the script's code and what scontrol was told.
job() {
  local script=$1 code=$2 rc=0
  shift 2
  rm -f "$t/requeued" "$t/arguments"
  (cd "$t" && env PATH="$t/slurm:$PATH" CODE="$code" REQUEUED="$t/requeued" ARGUMENTS="$t/arguments" SLURM_JOB_ID=42 \
    RECIPE=r.toml RUN="$t/run" "$@" "$BASH" "$here/$script") || rc=$?
  echo "$rc $(cat "$t/requeued" 2>/dev/null || true)"
}

# signalled SIGNAL CODE: the same for slurm.sbatch when the signal reaches it while mpirun runs.
signalled() {
  rm -f "$t/ready"
  mkfifo "$t/ready"
  job slurm.sbatch "$2" READY="$t/ready" AT="$1" SCRIPT_PID="$t/pid" BASH_ENV="$t/tell-pid" >"$t/outcome" &
  read -r <"$t/ready"
  kill -s "$1" "$(<"$t/pid")"
  wait $!
  cat "$t/outcome"
}

sbatch() {
  sbatch_world
  local script code
  # The script's own bash says its pid, the stand-in's does not.
  # shellcheck disable=SC2016
  echo '[[ $0 == *.sbatch ]] && echo $$ >"$SCRIPT_PID"' >"$t/tell-pid"
  for script in slurm.sbatch srun.sbatch; do
    for code in 69 75 76 77 137; do expect "$script: $code is requeued once" "$(job $script $code)" "$code requeue 42"; done
    for code in 0 1 64 65 70 71 74 78 79 130 143; do expect "$script: $code is not requeued" "$(job $script $code)" "$code "; done
    expect "$script: 19 starts before" "$(job $script 75 SLURM_RESTART_COUNT=19)" "75 requeue 42"
    expect "$script: 20 starts before" "$(job $script 75 SLURM_RESTART_COUNT=20)" "75 "
    expect "$script: command" "$(grep -o 'retort train.*' "$t/arguments")" "retort train r.toml --run $t/run"
    expect "$script: no recipe, nothing started" "$(job $script 0 RECIPE= 2>/dev/null; cat "$t/arguments" 2>/dev/null)" "64 "
  done
  expect "USR2: mpirun gets it, its code counts, requeued once" "$(signalled USR2 75)" "75 requeue 42"
  expect "USR2, and the ranks fail" "$(signalled USR2 78)" "78 "
  expect "TERM goes on to mpirun" "$(signalled TERM 143)" "143 "
  expect "USR2, then killed" "$(signalled USR2 137)" "137 requeue 42"
  expect "a container as RETORT" "$(job srun.sbatch 0 RETORT="apptainer exec x.sif retort"; grep -o 'apptainer.*' "$t/arguments")" \
    "0 
apptainer exec x.sif retort train r.toml --run $t/run"
}

# --- launchers that start ranks.
launchers() {
  local family
  program "$t/launch" retort <<'S'
echo "${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-none}} of ${OMPI_COMM_WORLD_SIZE:-${PMI_SIZE:-none}}: $*" 
S
  program "$t/launch" torchrun <<'S'
echo "$*"
S
  for family in openmpi mpich; do
    if ! command -v "mpirun.$family" >/dev/null; then echo "skipped: local.sh with $family: there is no mpirun.$family"; continue; fi
    program "$t/$family" mpirun <<<"exec $(command -v "mpirun.$family") \"\$@\""
    expect "local.sh with $family" "$(PATH="$t/$family:$t/launch:$PATH" RANKS=2 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
      OMPI_MCA_rmaps_base_oversubscribe=1 "$here/local.sh" r.toml --run x | sort)" "0 of 2: train r.toml --run x
1 of 2: train r.toml --run x"
  done
  program "$t/launch" mpirun <<'S'
echo "$*"
S
  local PATH=$t/launch:$PATH
  expect "local.sh: a rank per visible GPU" "$(CUDA_VISIBLE_DEVICES=2,3,5 "$here/local.sh" r.toml)" "-n 3 -bind-to none retort train r.toml"
  expect "mpi.sh" "$(HOSTFILE=hosts NODES=4 MPIRUN_OPTIONS="--mca pml ob1" "$here/mpi.sh" r.toml --run x)" \
    "-n 32 --hostfile hosts --map-by ppr:8:node --bind-to none -x PATH -x LD_LIBRARY_PATH -x NCCL_DEBUG=WARN \
--mca odls_base_sigkill_timeout 10 --mca pml ob1 $here/bind.sh retort train --set ranks.term_s=10 r.toml --run x"
  expect "torchrun.sh" "$(RANKS=4 NODES=2 NODE=1 MASTER_ADDR=n01 "$here/torchrun.sh" r.toml)" \
    "--no-python --max-restarts 0 --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr n01 --master-port 29500 -- retort train r.toml"
  for script in local.sh mpi.sh torchrun.sh bind.sh; do
    expect "$script without a recipe" "$("$here/$script" 2>/dev/null || echo $?)" 64
  done
}

syntax
bind
sbatch
launchers
echo "$passed passed, 0 failed"
