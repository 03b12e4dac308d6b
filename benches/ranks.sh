#!/usr/bin/env bash
# What several ranks cost on one machine: benches/ranks.sh [ROUNDS [STEPS]]. Two CPU ranks of one thread each under Open MPI's mpirun, quickstart's network and data,
# 150 (STEPS) steps of 64 images; in turn: sums in any order ("fast") and in the one order of any number of ranks (train.reproducible), by MPI's plugin and by TCP, beside
# two ranks as threads of one process and one rank of two threads. Seconds of the run as the program tells them, start and first checkpoint included.
# Needs mpirun.openmpi, tools/build-mpi.sh's plugin, and python3 for the table.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} steps=${2:-150}
bin=${CARGO_TARGET_DIR:-target}/release
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
common=(train configs/quickstart.toml --device cpu --max-steps "$steps" --json --quiet --resume never)
mpi=(mpirun.openmpi -n 2 --oversubscribe --bind-to none)

# one NAME ROUND COMMAND...: a line "NAME seconds".
one() {
  local name=$1 round=$2 seconds
  shift 2
  seconds=$("$@" "${common[@]}" --run "$folder/$name-$round" "${extra[@]}" | python3 -c 'import json, sys; print(json.load(sys.stdin)["seconds"])')
  printf '%s\t%s\n' "$name" "$seconds" >>"$folder/times"
  rm -rf "${folder:?}/$name-$round"
}

for ((round = 0; round < rounds; round++)); do
  for mode in fast reproducible; do
    extra=(--micro-batch 16 --threads 1)
    [[ $mode == fast ]] || extra+=(--reproducible)
    one "mpi, $mode" "$round" "${mpi[@]}" "$bin/retort"
    one "tcp, $mode" "$round" "${mpi[@]}" env RETORT_MPI_PLUGIN=none "$bin/retort"
    extra+=(--ranks 2)
    one "threads, $mode" "$round" env "$bin/retort"
  done
  extra=(--micro-batch 16 --threads 2)
  one "one rank" "$round" env "$bin/retort"
done
python3 - "$folder/times" <<'P'
import collections, statistics, sys
times = collections.defaultdict(list)
for line in open(sys.argv[1]):
    name, seconds = line.rstrip("\n").split("\t")
    times[name].append(float(seconds))
base = times["one rank"]
print("| ranks | median s | of one rank's time: median (min ... max) |\n|---|---|---|")
for name, seconds in times.items():
    ratios = sorted(a / b for a, b in zip(seconds, base))
    print(f"| {name} | {statistics.median(seconds):.2f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} ... {ratios[-1]:.2f}) |")
for way in ("mpi", "tcp", "threads"):
    ratios = sorted(a / b for a, b in zip(times[f"{way}, reproducible"], times[f"{way}, fast"]))
    print(f"\nreproducible / fast, {way}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} ... {ratios[-1]:.3f})")
P
