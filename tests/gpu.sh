#!/usr/bin/env bash
# What only a machine with a GPU can tell. It needs a driver of 580 or newer, and for some parts python3, PyTorch and
# compute-sanitizer; no Rust, no network, no checkout.
#   tests/gpu.sh pack [FOLDER]   on the build machine: release build, self-test, recipes and data, as FOLDER and FOLDER.tar.gz (at most
#                                60 MiB); without a name, target/retort-gpu
#   tests/gpu.sh check           from there on in the unpacked folder: instructions against their definitions, the op table, captured against
#                                stepped steps of every method, whole networks launch by launch beside the CPU, two ranks on one GPU,
#                                compute-sanitizer
#   tests/gpu.sh train           a short training on the GPU in f32 and bf16 and on the CPU, loss curves laid over each other
#   tests/gpu.sh bench           images/s beside PyTorch's, kernel timings; a short protocol, labelled so
# Each part ends within 8 minutes, leaves PART.json, PART.md and logs/ in OUT (default: gpu-results), and ends with 1 if something failed.
# Variables: OUT; BIN, the folder of retort, ops and executor; PYTHON; SHORT=1, a few of all cases, to try the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-}
PYTHON=${PYTHON:-python3}
SHORT=${SHORT:-}
BIN=${BIN:-bin}
OUT=${OUT:-gpu-results}
PART_SECONDS=460
LIMIT_BYTES=$((60 << 20))

fail() {
  printf 'tests/gpu.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

# --- pack

# test_binary NAME: its path, built.
test_binary() {
  cargo test --release -p cuda --test "$1" --no-run --message-format=json |
    grep -o '"executable":"[^"]*"' | tail -n 1 | cut -d'"' -f4
}

pack() {
  local folder=${1:-target/retort-gpu} commit file
  commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
  export RETORT_CUDA_ARCHS=${RETORT_CUDA_ARCHS:-80 90} RETORT_GIT_HASH=$commit
  cargo build --release -p cli
  rm -rf "$folder"
  mkdir -p "$folder"/{bin,tests,benches/peers,data}
  strip -o "$folder/bin/retort" "${CARGO_TARGET_DIR:-target}/release/retort"
  for file in ops executor; do strip -o "$folder/bin/$file" "$(test_binary "$file")"; done
  cp -r tests/gpu.sh tests/gpu "$folder/tests/"
  cp benches/peers/{train_gpu,nets,mobile_nets}.py "$folder/benches/peers/"
  cp -r configs "$folder/"
  cp -r data/fashion "$folder/data/"
  find "$folder" -name __pycache__ -prune -exec rm -r {} +
  printf '{"commit": "%s", "targets": "%s", "packed": "%s"}\n' "$commit" "$RETORT_CUDA_ARCHS" "$(date -u +%F)" >"$folder/build.json"
  tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
  local bytes packed
  bytes=$(du -sb "$folder" | cut -f1)
  packed=$(stat -c %s "$folder.tar.gz")
  printf '%s: %d.%d MiB, %s.tar.gz: %d.%d MiB, commit %s, sm %s\n' "$folder" $((bytes >> 20)) $(((bytes % 1048576) * 10 >> 20)) \
    "$folder" $((packed >> 20)) $(((packed % 1048576) * 10 >> 20)) "$commit" "$RETORT_CUDA_ARCHS"
  ((bytes <= LIMIT_BYTES)) || fail "$folder has $bytes bytes, at most $LIMIT_BYTES are to be carried"
}

# --- what all parts share

failures=0
note() { printf '%s\n' "$1" | tee -a "$OUT/$part.notes"; }

# outcome NAME passed|failed|skipped SECONDS DETAIL
outcome() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4//[$'\t\n']/ }" >>"$OUT/$part.steps"
  printf '%-8s %4s s  %s%s\n' "$2" "$3" "$1" "${4:+: $4}"
  [[ $2 != failed ]] || failures=$((failures + 1))
}

# step LIMIT NAME COMMAND...: its output goes to a log; what it says last is kept where it fails. False if it does.
step() {
  local limit=$1 name=$2 left=$((PART_SECONDS - SECONDS)) begin=$SECONDS status=0 text
  shift 2
  log=$OUT/logs/$part-${name//[^a-zA-Z0-9_.-]/_}.log
  if ((left < 5)); then
    outcome "$name" failed 0 "not run: the part's time is over"
    return 1
  fi
  timeout --kill-after=10 $((limit < left ? limit : left)) "$@" >"$log" 2>&1 || status=$?
  if ((status == 0)); then
    outcome "$name" passed $((SECONDS - begin)) "$(grep -aE '^(test result|against cpu)' "$log" | tail -n 1 | sed 's/; 0 failed.*//' || true)"
    return 0
  fi
  text=$(grep -aE 'panicked|FAILED|ERROR SUMMARY|^retort: |^against cpu|Error' "$log" | head -n 3 | cut -c1-300 || true)
  ((status != 124 && status != 137)) || text="over its time; $text"
  outcome "$name" failed $((SECONDS - begin)) "${text:-$(tail -n 1 "$log" | cut -c1-300)} (exit $status, $log)"
  return 1
}

# Which machine: facts of the GPU, its driver and its tools.
facts() {
  local driver=""
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,uuid,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader \
      >"$OUT/$part.gpus" 2>&1 || true
    while read -r text; do note "GPU: $text"; done <"$OUT/$part.gpus"
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1 || true)
    if [[ $driver =~ ^[0-9]+$ ]] && ((driver >= 580)); then outcome "driver 580 or newer" passed 0 "$driver"
    else outcome "driver 580 or newer" failed 0 "nvidia-smi says '$driver'"; fi
  else
    note "nvidia-smi is absent: no facts of the GPU, and its clocks are not watched"
  fi
  [[ ! -f build.json ]] || note "build: $(<build.json)"
  note "machine: $(nproc) processors, $(uname -sr)"
  if command -v nvcc >/dev/null; then note "nvcc: $(nvcc --version | tail -n 1)"; fi
}

# Clocks, heat and reasons to throttle, as they are now.
clocks() {
  command -v nvidia-smi >/dev/null || return 0
  nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active --format=csv,noheader \
    2>/dev/null | sed "s/^/clocks $1: /" >>"$OUT/$part.notes" || true
}

have_python() { command -v "$PYTHON" >/dev/null; }

# The record of the part, from what lies in OUT.
record() {
  if have_python; then "$PYTHON" tests/gpu/record.py "$part" "$OUT"
  else printf 'tests/gpu.sh: %s is absent: no %s.json, the outcome is in %s/%s.steps\n' "$PYTHON" "$part" "$OUT" "$part" >&2; fi
}

# --- check

# Test programs pass without a GPU, aloud; here that is a failure.
a_gpu_is_used() {
  step 60 "a GPU is used" "$BIN/ops" --exact wrappers::lanes --nocapture || return 1
  if grep -q 'on GPU [0-9]*:' "$log"; then
    note "tests run $(grep -om1 'on GPU [0-9]*:.*' "$log")"
  else
    outcome "a GPU is used" failed 0 "$(grep -m1 skipped "$log" || echo 'the self-test does not say so')"
    return 1
  fi
}

# A process for each module of a test program, so that an error that a GPU does not forget stays in one.
modules() {
  local program=$1 limit=$2 all module
  shift 2
  all=("$@")
  ((${#all[@]})) || mapfile -t all < <("$BIN/$program" --list | sed -n 's/::.*: test$//p' | sort -u | grep -vxE 'coverage|wrappers')
  for module in "${all[@]}"; do step "$limit" "$program $module" "$BIN/$program" --test-threads=1 "$module::" || true; done
}

sanitizer() {
  local tool found=""
  for tool in compute-sanitizer "${CUDA_HOME:+$CUDA_HOME/bin/compute-sanitizer}" "$(dirname "$(command -v nvcc || echo .)")/compute-sanitizer"; do
    [[ -z $tool ]] || ! command -v "$tool" >/dev/null || { found=$tool && break; }
  done
  if [[ -z $found ]]; then
    note "compute-sanitizer is absent: memory and races were not checked by it"
    return 0
  fi
  # Copies, tensor cores, reductions in shared memory, packs and tails; the other families pass tests/sanitize.sh, without a GPU.
  local cases=(wrappers:: elementwise:: pool::maximum bn::statistics loss::softmax_of_rows conv::splits_of_wgrad matmul::bf16_products)
  for tool in memcheck racecheck; do
    step 75 "compute-sanitizer $tool" "$found" --tool "$tool" --error-exitcode 9 "$BIN/ops" --test-threads=1 "${cases[@]}" || true
  done
}

# nodes RECIPE PRECISION UNITS ARGUMENTS...: a step at the recipe's own shapes, each launch beside the CPU's op.
nodes() {
  local recipe=$1 precision=$2 units=$3 folder=$OUT/step
  shift 3
  mkdir -p "$folder"
  "$BIN/retort" step "$recipe" "$@" --describe --json | "$PYTHON" tests/gpu/step_files.py "$folder" "$units" || {
    outcome "nodes $(basename "$recipe" .toml) $precision" failed 0 "its weights and batch could not be made"
    return 0
  }
  step 120 "nodes $(basename "$recipe" .toml) $precision" "$BIN/retort" step "$recipe" "$@" --precision "$precision" --device cuda \
    --against cpu --weights "$folder/weights.safetensors" --batch "$folder/batch.safetensors" --out "$folder/out.safetensors" || true
  rm -rf "$folder"
}

# together NAME VARIABLE=VALUE...: two ranks as processes on GPU 0, in fast mode; true if both end with 0.
together() {
  local name=$1 run=$OUT/ranks/$1 rank pids=() failed=0
  shift
  rm -rf "$run"
  for rank in 0 1; do
    env RETORT_RANK=$rank RETORT_WORLD_SIZE=2 RETORT_LOCAL_RANK=$rank CUDA_VISIBLE_DEVICES=0 NCCL_HOSTID=job-$rank "$@" "$BIN/retort" train configs/quickstart.toml \
      --device cuda:0 --seed 1 --max-steps "$STEPS" --micro-batch "$MICRO" -b $((2 * MICRO)) --run "$run" --resume never --quiet &
    pids+=($!)
  done
  for rank in 0 1; do wait "${pids[rank]}" || failed=1; done
  return $failed
}

alone() {
  "$BIN/retort" train configs/quickstart.toml --device cuda:0 --seed 1 --max-steps "$STEPS" --micro-batch "$MICRO" -b $((2 * MICRO)) \
    --run "$OUT/ranks/one" --resume never --quiet
}

same_weights() { cmp "$OUT/ranks/$1/checkpoints/step-$STEPS/model.safetensors" "$OUT/ranks/$2/checkpoints/step-$STEPS/model.safetensors"; }

# Several ranks on one GPU, for correctness: sums of two ranks have one order, so the weights are those of one rank, bit for bit. By NCCL inside
# captured graphs this is what others report to work; it is not supported by NCCL before 2.30, so its failure is a note.
ranks() {
  local one_gpu=(NCCL_NET=Socket NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME=lo NCCL_MAX_CTAS=2 NCCL_MULTI_RANK_GPU_ENABLE=1)
  export -f together alone same_weights
  export OUT BIN STEPS=8 MICRO=16
  [[ ! $SHORT ]] || STEPS=3 MICRO=2
  rm -rf "$OUT/ranks" && mkdir -p "$OUT/ranks"
  step 60 "one rank" bash -c alone || return 0
  if step 90 "two ranks on one GPU, by the host" bash -c 'together host RETORT_SHARE_GPU=1'; then
    step 10 "their weights are one rank's" bash -c 'same_weights one host' || true
  fi
  if timeout 90 bash -c 'together nccl RETORT_SHARE_GPU=nccl "$@"' together "${one_gpu[@]}" >"$OUT/logs/check-nccl.log" 2>&1; then
    step 10 "by NCCL inside graphs: the weights are one rank's" bash -c 'same_weights one nccl' || true
  else
    note "two ranks on one GPU by NCCL did not run: $(grep -a 'retort:' "$OUT/logs/check-nccl.log" | tail -n 1 | cut -c1-300)"
  fi
}

check() {
  facts
  if a_gpu_is_used; then
    modules ops 60 wrappers
    if [[ $SHORT ]]; then modules ops 60 elementwise pool; else modules ops 120; fi
    if [[ $SHORT ]]; then modules executor 60 memory ops; else modules executor 150; fi
    if ! have_python; then note "$PYTHON is absent: no launches of whole networks were compared"
    elif [[ $SHORT ]]; then nodes configs/cifar100/ce_resnet8x4.toml bf16 2
    else
      nodes configs/cifar100/ce_resnet8x4.toml bf16 64
      nodes configs/cifar100/ce_resnet8x4.toml tf32 64 --set network.name=wrn_16_2
      nodes configs/imagenet/ce_resnet50.toml bf16 8
      nodes configs/imagenet/ce_resnet50.toml f32 4
    fi
    ranks
    sanitizer
  fi
}

# --- train

# training DEVICE PRECISION ARGUMENTS...: the quickstart, every step in the log.
training() {
  local device=$1 precision=$2 run=$OUT/train/$1-$2 begin
  shift 2
  rm -rf "$run"
  begin=$(date +%s%N)
  step 300 "train $device $precision" "$BIN/retort" train configs/quickstart.toml --device "$device" --precision "$precision" --seed 1 \
    --resume never --run "$run" --set output.log_every=1 --quiet "$@" || return 1
  printf '{"wall_s": %d.%03d}\n' $((($(date +%s%N) - begin) / 1000000000)) $((($(date +%s%N) - begin) / 1000000 % 1000)) >"$run/wall.json"
  clocks "after $device $precision"
}

train() {
  local arguments=(--max-steps 300)
  [[ ! $SHORT ]] || arguments=(--max-steps 3 -b 8)
  facts
  have_python || fail "train needs $PYTHON to lay curves over each other (PYTHON names another)"
  training cuda f32 "${arguments[@]}" || true
  training cuda bf16 "${arguments[@]}" || true
  training cpu f32 "${arguments[@]}" || true
  step 60 "loss curves" "$PYTHON" tests/gpu/curves.py "$OUT/train" || true
  [[ ! -f $log ]] || cat "$log"
}

# --- bench

# ours NAME ROUND RECIPE ARGUMENTS... and peer NAME ROUND ARGUMENTS...: a JSON file of images/s.
ours() {
  local name=$1 round=$2
  shift 2
  step 120 "retort $name $round" "$BIN/retort" bench "$@" --device cuda --precision bf16 --json "$OUT/bench/$name.retort.$round.json" || return 1
  clocks "after retort $name $round"
}
peer() {
  local name=$1 round=$2
  shift 2
  step 120 "torch $name $round" "$PYTHON" benches/peers/train_gpu.py --precision bf16 "$@" || return 1
  grep '^{' "$log" | tail -n 1 >"$OUT/bench/$name.torch.$round.json"
  clocks "after torch $name $round"
}

# pairs NAME NET BATCH RECIPE ARGUMENTS...: A B A B ..., then every launch on its own.
pairs() {
  local name=$1 net=$2 batch=$3 round protocol
  shift 3
  for ((round = 1; round <= rounds; round++)); do
    protocol=(--batch "$batch" --steps "$steps" --windows 3)
    ours "$name" "$round" "$@" "${protocol[@]}" || return 1
    [[ ! $torch ]] || peer "$name" "$round" --net "$net" "${protocol[@]}" || true
  done
  ours "$name" profile "$@" "${protocol[@]}" --profile || true
}

bench() {
  rounds=3 steps=50 torch=""
  [[ ! $SHORT ]] || rounds=1 steps=5
  facts
  note "protocol: short. bf16; per round 3 windows of $steps steps each after a warm-up, $rounds rounds of ours and PyTorch's in turn"
  rm -rf "$OUT/bench" && mkdir -p "$OUT/bench"
  if have_python && "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then torch=yes
  else note "PyTorch with CUDA is absent: no peer"; fi
  pairs resnet8x4 resnet8x4 64 configs/cifar100/ce_resnet8x4.toml || true
  pairs wrn_16_2 wrn_16_2 64 configs/cifar100/ce_resnet8x4.toml --set network.name=wrn_16_2 || true
  steps=$((steps / 2))
  pairs resnet50 imagenet_resnet50 256 configs/imagenet/ce_resnet50.toml || true
}

case $part in
  pack)
    pack "${2:-}"
    exit 0
    ;;
  check | train | bench) ;;
  *) fail "unknown part '$part'; expected pack, check, train or bench" 2 ;;
esac
[[ -x $BIN/retort && -x $BIN/ops && -x $BIN/executor ]] ||
  fail "$BIN has no retort, ops and executor; run tests/gpu.sh in the folder that tests/gpu.sh pack made, or set BIN" 2
mkdir -p "$OUT/logs"
rm -f "$OUT/$part".{notes,steps,gpus,json,md}
: >"$OUT/$part.notes"
: >"$OUT/$part.steps"
log=""
[[ ! $SHORT ]] || note "SHORT: a few of all cases; this is no record of a GPU"
"$part"
record
((failures == 0)) || fail "$part: $failures of $(wc -l <"$OUT/$part.steps") steps failed; $OUT/$part.md says which"
printf 'tests/gpu.sh: %s passed in %d s; %s/%s.md and .json are its record\n' "$part" "$SECONDS" "$OUT" "$part"
