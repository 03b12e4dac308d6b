#!/usr/bin/env bash
# Tests of the stand-in GPU and NCCL themselves: simgpu/test.sh [OUT]. Both in several schedules, then planted bugs: each must be found
# in the flavour that is meant to find it, and its correct twin must pass in all. Needs g++ with its sanitizers. Builds in OUT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../target/simgpu-test}
mkdir -p "$out"
out=$(cd "$out" && pwd)

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

# once NAME FLAVOUR SCHEDULE LOG: a test passes.
once() {
  local memory=1048576
  [[ $1 == nccl ]] && memory=8388608
  if ! SIMGPU_MEMORY=$memory SIMGPU_DEVICES=2 run "$2" $3 "$out/$1" >"$4" 2>&1; then
    echo "FAILED: $1 ($2, $3)" && tail -n 12 "$4"
  fi
}

# passes NAME: a test passes in every flavour and schedule.
passes() {
  local flavour schedule
  for flavour in plain asan tsan; do
    for schedule in "${schedules[@]}"; do once "$1" $flavour "$schedule" "$reports/passes-$1.log"; done
  done
}

# planted NAME FLAVOUR: NAME_bug is found there in some schedule, NAME_good passes everywhere.
planted() {
  local found="" flavour schedule log=$reports/planted-$1.log
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
  fi
  for flavour in plain asan tsan; do
    local some=("${schedules[@]}")
    [[ $flavour == plain ]] || some=("${schedules[2]}" "${schedules[3]}")
    for schedule in "${some[@]}"; do
      if ! run $flavour $schedule "$out/planted" "$1_good" >"$log" 2>&1; then
        echo "FAILED: $1, the correct twin, does not pass ($flavour, $schedule)" && tail -n 12 "$log"
      fi
    done
  done
}

# They wait more than they compute: twice as many at once as there are cores.
reports=$out/reports
rm -rf "$reports" && mkdir "$reports"
# at_once FUNCTION NAME [FLAVOUR]: in the background, what it says in a file.
at_once() {
  while (($(jobs -pr | wc -l) >= 2 * $(nproc))); do wait -n || true; done
  "$@" >"$reports/$1-$2.txt" 2>&1 &
}
tests=(streams memory graphs launches tensor_maps threads nccl)
for name in "${tests[@]}"; do at_once passes $name; done
by_schedule=(copy_wait barrier_before_read barrier_before_write barrier_in_reduction overwritten lane_missing barrier_divergence
  uninitialised uninitialised_static misaligned streams host)
for name in "${by_schedule[@]}"; do at_once planted $name plain; done
in_bounds=(bounds_global bounds_static bounds_dynamic)
for name in "${in_bounds[@]}"; do at_once planted $name asan; done
at_once planted warp_race tsan
wait
for name in "${tests[@]}"; do cat "$reports/passes-$name.txt"; done
for name in "${by_schedule[@]}" "${in_bounds[@]}" warp_race; do cat "$reports/planted-$name.txt"; done
failures=$(cat "$reports"/*.txt | grep -c '^FAILED' || true)
((failures == 0)) || { echo "simgpu/test.sh: $failures failures" >&2; exit 1; }
echo "simgpu/test.sh: all of ${#tests[@]} tests and $((${#by_schedule[@]} + ${#in_bounds[@]} + 1)) planted bugs passed"
