#!/usr/bin/env bash
# Everything that a change must pass: format, lints, docs, tests, and the kernels compiled, run and sanitized without a GPU.
# Needs Rust and g++ (installed here where missing, as root on Debian and its kin), and the package registries: the pinned CUDA
# compiler comes from PyPI by python3's pip. Without it all goes on, said aloud, but for the checks of compiled kernels.
set -euo pipefail
cd "$(dirname "$0")/.."

export SIMGPU="$PWD/target/simgpu" # the stand-in GPU, for the op table
export RETORT_CUDA_ARCHS=${RETORT_CUDA_ARCHS:-80} # one target of the fatbins, so that it stays short
notes=()
times=()

# step NAME COMMAND...
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  times+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

note() {
  notes+=("$1")
  printf '\n!! %s\n' "$1"
}

# package COMMAND PACKAGE: installs what is missing, if that can be done here.
package() {
  if command -v "$1" >/dev/null; then return; fi
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then return 1; fi
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

tools() {
  package g++ g++ || { echo "tests/all.sh: g++ is missing; install it (Debian: apt-get install g++) and run again" >&2; exit 1; }
  package python3 python3 && { python3 -m pip --version >/dev/null 2>&1 || package pip3 python3-pip; } ||
    note "python3 with pip is missing: install python3-pip for the checks of compiled kernels"
}

toolchain() {
  tools/fetch-nvcc.sh || { note "nvcc was not fetched: goes on WITHOUT embedded kernels, and their machine code is NOT checked"; return 0; }
  tools/fetch-disassembler.sh || note "cuobjdump was not fetched: the instructions of compiled kernels are NOT checked"
}

# The driver's own tests: the whole CUDA path, by nothing but the library path.
with_driver() { LD_LIBRARY_PATH="$SIMGPU${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"; }

step tools tools
step toolchain toolchain
step "stand-in GPU" simgpu/build.sh "$SIMGPU"
step format cargo fmt --all --check
step lints cargo clippy --workspace --all-targets --release -- -D warnings
step documentation env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --release
step tests cargo test --workspace --release
step "tests on the stand-in GPU" with_driver cargo test --workspace --release --test executor --test cuda --test norms
step "sanitizers and planted bugs" tests/sanitize.sh short

printf '\n== passed\n'
printf '%s\n' "${times[@]}"
for text in "${notes[@]}"; do printf '!! %s\n' "$text"; done
