#!/usr/bin/env bash
# All kernels under sanitizers: tests/sanitize.sh [short]. The op table of crates/cuda runs on the stand-in GPU in two flavours: ASan with
# UBSan (accesses out of bounds, undefined arithmetic), then TSan (races on shared memory within a block). `short` leaves
# most cases to TSan's full run.
# Needs Rust and g++ with its sanitizers; no GPU. Then the tests of the stand-in itself, which prove that planted bugs are found.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-all}
case $mode in
  all) some=() ;;
  # Some cases of every family, those that take seconds under TSan.
  short) some=(elementwise image:: rows:: pool:: rank::correlation rank::top_k update:: bn::fold bn::apply matmul::biases loss::softmax loss::masks
    loss::squared conv::splits wrappers:: --skip gradient_norm_of_many --skip lars_of_a_large_tensor) ;;
  *) echo "tests/sanitize.sh: unknown mode $mode; expected nothing or short" >&2; exit 2 ;;
esac
target=${CARGO_TARGET_DIR:-target}
asan=$(realpath "$(gcc -print-file-name=libasan.so)")
tsan=$(realpath "$(gcc -print-file-name=libtsan.so)")

step() { printf '\n== %s\n' "$*"; }

# Of the whole workspace, so that nothing is built anew after its tests. ops FOLDER "WORDS BEFORE THE TESTS" TEST-ARGUMENTS...
ops() {
  local table
  table=$(cargo test --workspace --release --test ops --no-run --message-format=json-render-diagnostics |
    sed -n '/crates\/cuda#/s/.*"executable":"\([^"]*\)".*/\1/p')
  # shellcheck disable=SC2086
  (cd crates/cuda && SIMGPU=$1 $2 "$table" "${@:3}")
}

for flavour in asan tsan; do
  step "build the stand-in, $flavour" && simgpu/build.sh "$target/simgpu-$flavour" $flavour
done
folder=$(cd "$target" && pwd)
step "op table, ASan and UBSan"
ops "$folder/simgpu-asan" "env LD_PRELOAD=$asan ASAN_OPTIONS=detect_leaks=0" --test-threads=1
step "op table, TSan"
options=ignore_noninstrumented_modules=1:exitcode=66:halt_on_error=1
ops "$folder/simgpu-tsan" "setarch -R env LD_PRELOAD=$tsan TSAN_OPTIONS=$options" --test-threads="$(nproc)" "${some[@]}"
step "planted bugs" && simgpu/test.sh "$folder/simgpu-test"
