#!/usr/bin/env bash
# Tests of the stand-in GPU and NCCL themselves: simgpu/test.sh [OUT]. Both in several schedules, then planted bugs: each must be found
# in the flavour that is meant to find it, and its correct twin must pass in all. Needs g++ with its sanitizers. Builds in OUT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../target/simgpu-test}
mkdir -p "$out"
out=$(cd "$out" && pwd)
log=$out/log
failures=0

for flavour in plain asan tsan; do
  SIMGPU_KERNELS="$here/tests/kernels.cu $(echo "$here"/tests/planted/*.cu)" "$here/build.sh" "$out/$flavour" $flavour
done
for test in streams memory graphs launches tensor_maps threads nccl planted; do
  program=$out/$test
  [[ -x $program && -z $(find "$here/tests/$test.cpp" "$here/tests/check.h" "$here/src/cuda_api.h" -newer "$program" -print -quit) ]] && continue
  g++ -std=c++17 -O1 -g -Wall -Wextra -I"$here/src" -I"$here/tests" "$here/tests/$test.cpp" -o "$program" \
    -L"$out/plain" -l:libcuda.so.1 -l:libnccl.so.2 -Wl,--allow-shlib-undefined -lpthread
done

# Orders and landings that a program may meet; random ones twice.
schedules=("forward early 1" "reverse late 1" "random mixed 2" "random late 3")

# run FLAVOUR ORDER LANDING SEED PROGRAM ARGUMENTS...
run() {
  local settings=(LD_LIBRARY_PATH="$out/$1" SIMGPU_ORDER=$2 SIMGPU_ASYNC=$3 SIMGPU_SEED=$4)
  case $1 in
    plain) env "${settings[@]}" "${@:5}" ;;
    asan) env "${settings[@]}" LD_PRELOAD="$(realpath "$(gcc -print-file-name=libasan.so)")" ASAN_OPTIONS=detect_leaks=0 "${@:5}" ;;
    tsan) setarch -R env "${settings[@]}" LD_PRELOAD="$(realpath "$(gcc -print-file-name=libtsan.so)")" \
      TSAN_OPTIONS=ignore_noninstrumented_modules=1:exitcode=66 "${@:5}" ;;
  esac
}

for test in streams memory graphs launches tensor_maps threads nccl; do
  memory=1048576
  [[ $test == nccl ]] && memory=8388608
  for flavour in plain asan tsan; do
    for schedule in "${schedules[@]}"; do
      if ! SIMGPU_MEMORY=$memory SIMGPU_DEVICES=2 run $flavour $schedule "$out/$test" >"$log" 2>&1; then
        echo "FAILED: $test ($flavour, $schedule)" && tail -n 12 "$log"
        failures=$((failures + 1))
      fi
    done
  done
done
echo "driver: done"

# planted NAME FLAVOUR: NAME_bug is found there in some schedule, NAME_good passes everywhere.
planted() {
  local found="" flavour schedule
  for schedule in "${schedules[@]}"; do
    if ! run "$2" $schedule "$out/planted" "$1_bug" >"$log" 2>&1; then
      found="$schedule: $(grep -m1 -E 'ERROR: |WARNING: Thread|runtime error|simgpu: |element|check' "$log" || tail -n 1 "$log")"
      break
    fi
  done
  if [[ -n $found ]]; then
    printf '%-22s found by %-5s %.150s\n' "$1" "$2" "$found"
  else
    echo "FAILED: $1 is not found by $2"
    failures=$((failures + 1))
  fi
  for flavour in plain asan tsan; do
    local some=("${schedules[@]}")
    [[ $flavour == plain ]] || some=("${schedules[2]}" "${schedules[3]}")
    for schedule in "${some[@]}"; do
      if ! run $flavour $schedule "$out/planted" "$1_good" >"$log" 2>&1; then
        echo "FAILED: $1, the correct twin, does not pass ($flavour, $schedule)" && tail -n 12 "$log"
        failures=$((failures + 1))
      fi
    done
  done
}
for name in copy_wait barrier_before_read barrier_before_write barrier_in_reduction overwritten lane_missing barrier_divergence \
  uninitialised uninitialised_static misaligned streams host; do
  planted $name plain
done
for name in bounds_global bounds_static bounds_dynamic; do planted $name asan; done
planted warp_race tsan
((failures == 0)) || { echo "simgpu/test.sh: $failures failures" >&2; exit 1; }
echo "simgpu/test.sh: all passed"
