#!/usr/bin/env bash
# Everything that a change must pass: format, lints, docs, tests, ranks under MPI launchers, and the kernels compiled, run and sanitized
# without a GPU.
# Needs Rust and g++ (installed here where missing, as root on Debian and its kin), and the package registries: the pinned CUDA
# compiler comes from PyPI by python3's pip, Open MPI, MPICH and libclang from Debian. Without them all goes on, said aloud, but for
# what they serve.
set -euo pipefail
cd "$(dirname "$0")/.."

export SIMGPU="$PWD/target/simgpu" # the stand-in GPU, for the op table
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
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

# Both families of MPI, for their launchers and the plugin.
mpi() {
  local missing=()
  command -v mpirun.openmpi >/dev/null && command -v mpicc.openmpi >/dev/null || missing+=(openmpi-bin libopenmpi-dev)
  command -v mpirun.mpich >/dev/null && command -v mpicc.mpich >/dev/null || missing+=(mpich libmpich-dev)
  compgen -G "/usr/lib/llvm-*/lib/libclang*.so" >/dev/null || missing+=(libclang-dev)
  if ((${#missing[@]})) && [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || true
  fi
  tools/build-mpi.sh all || note "no MPI plugin was built (see above): ranks under MPI are NOT tested"
}

toolchain() {
  tools/fetch-nvcc.sh || { note "nvcc was not fetched: goes on WITHOUT embedded kernels, and their machine code is NOT checked"; return 0; }
  tools/fetch-disassembler.sh || note "cuobjdump was not fetched: the instructions of compiled kernels are NOT checked"
}

# The driver's own tests: the whole CUDA path, by nothing but the library path.
with_driver() { SIMGPU_DEVICES=8 LD_LIBRARY_PATH="$SIMGPU${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"; }

plugin_checks() {
  compgen -G "${CARGO_TARGET_DIR:-target}/release/libretort_mpi_*.so" >/dev/null || return 0
  cargo fmt --manifest-path crates/mpi/Cargo.toml --check
  local family=openmpi
  command -v mpicc.openmpi >/dev/null || family=mpich
  MPICC=mpicc.$family CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/mpi-$family \
    cargo clippy --manifest-path crates/mpi/Cargo.toml --release --locked -- -D warnings
}

step tools tools
step toolchain toolchain
step "MPI and its plugin" mpi
step "stand-in GPU" simgpu/build.sh "$SIMGPU"
step format cargo fmt --all --check
step lints cargo clippy --workspace --all-targets --release -- -D warnings
step "lints of the MPI plugin" plugin_checks
step documentation env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --release
step tests cargo test --workspace --release
step "tests on the stand-in GPU" with_driver cargo test --workspace --release --test executor --test cuda --test nccl --test ranks_cuda --test norms
step "launch scripts" launch/test.sh
step "sanitizers and planted bugs" tests/sanitize.sh short

printf '\n== passed\n'
printf '%s\n' "${times[@]}"
for text in "${notes[@]}"; do printf '!! %s\n' "$text"; done
