#!/usr/bin/env bash
# The long form of the fault list (RELIABILITY.md, section 9) for runs of several processes on the CPU: tests/faults.sh [RUNS [TEST...]]
# Up to RUNS (default 200) runs of each fault, limits without allowance for a busy machine; the table goes to
# benches/records/faults.md. With TESTs, tests whose names contain one of them alone: their rows take the place of older ones there.
# More than 200 means more for F18 and F23 alone, which have 997 sizes and 400 pairs: tests/faults.sh 997 f18, 400 f23.
# Needs Rust, 2 quiet cores and hours with 200, one of them F2's hour under load; best as root (full and
# read-only disks, memory of other processes) and with mpirun.openmpi and mpirun.mpich; what is missing is skipped aloud.
# RETORT_FAULT_SEED repeats the random choices, which are printed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export RETORT_FAULT_RUNS=${1:-200}
only=("${@:2}")
RETORT_FAULT_TABLE=$(mktemp)
export RETORT_FAULT_TABLE
trap 'rm -f "$RETORT_FAULT_TABLE"' EXIT

cargo test --release -p cli --test faults -- --nocapture --test-threads 1 "${only[@]}"
code=$?

record=benches/records/faults.md
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
here="\`tests/faults.sh $RETORT_FAULT_RUNS${only[*]:+ ${only[*]}}\`, $(nproc) cores of $cpu, $(date -u +%F), commit $commit, load averages at the end $(cut -d' ' -f1-3 /proc/loadavg)."
table=$RETORT_FAULT_TABLE
# Columns 1 and 2 tell whether a row is the same one.
if ((${#only[@]})); then
  older=$(awk -F'|' 'NR == FNR { new[$2 FS $3]; next } /^\| F/ && !(($2 FS $3) in new)' "$table" "$record")
  sources=$(sed -n '/^`tests\/faults.sh/p' "$record")
  printf '%s\n' "$older" >>"$table"
  here=$(printf '%s\n\n%s' "$sources" "$here" | cat -s)
fi
{
  cat <<END
# Faults of runs of several processes

$here

ResNet-8 on 1 to 9600 made-up images, CPU ranks on one host. Several runs beside each other where much of a run is
waiting. Times in seconds, from the fault to the report and to the end of the last process. Codes are those of the ranks in order (F1, F4: of the survivors;
F5: of the launcher), × how often. Rows of a later command took the place of older ones.

| fault | how | runs | detection p50 / max | all gone max | right rank named | codes, outcome |
|---|---|---|---|---|---|---|
END
  sort -t'|' -k2,2V -s "$table"
} >"$record.new"
mv "$record.new" "$record"
echo "tests/faults.sh: the table is in $record"
exit $code
