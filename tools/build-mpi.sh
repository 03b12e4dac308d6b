#!/usr/bin/env bash
# Builds the MPI plugin, which `retort` opens at run time from the folder that it lies in, once per MPI family found here.
#   tools/build-mpi.sh [openmpi|mpich|all] [OUT]     OUT: target/release, beside the binary
# A family is found by its compiler (mpicc.openmpi, mpicc.mpich, or an mpicc that says which it is); MPICC names another one for
# the one family that was asked for: MPICC=/opt/intel/bin/mpicc tools/build-mpi.sh mpich. MPICH's plugin serves its kin of the same
# ABI as well (Intel MPI, MVAPICH). Needs Rust, a C compiler and libclang.so (bindgen). Exit code 0 where what was asked for was
# built (all: at least one).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
asked=${1:-all}
target=${CARGO_TARGET_DIR:-$root/target}
out=${2:-$target/release}

say() { echo "tools/build-mpi.sh: $*"; }
usage() { say "$1; usage: tools/build-mpi.sh [openmpi|mpich|all] [OUT]" >&2; exit 64; }

case $asked in
openmpi | mpich) families=$asked ;;
all) families="openmpi mpich" ;;
*) usage "no MPI family is called \"$asked\"" ;;
esac
[[ $asked != all || -z ${MPICC:-} ]] || usage "MPICC is one compiler and serves one family: say which"
command -v cargo >/dev/null || { say "cargo is missing; install Rust" >&2; exit 1; }

# has_libclang: whether bindgen will find libclang.so (the runtime package of Debian has no file of that name).
has_libclang() {
  local folder
  for folder in "${LIBCLANG_PATH:-}" $(llvm-config --libdir 2>/dev/null) /usr/lib/llvm-*/lib /usr/lib64 /usr/lib /usr/lib/*-linux-gnu; do
    if [[ -n $folder ]] && compgen -G "$folder/libclang*.so" >/dev/null; then return; fi
  done
  return 1
}
has_libclang || say "note: no libclang.so was found; where the build fails, install it (Debian: apt-get install libclang-dev)" \
  "or set LIBCLANG_PATH to its folder" >&2

# kind COMPILER: the family that it compiles for, by its own word.
kind() {
  local words
  words=$("$1" -show 2>/dev/null || "$1" --showme 2>/dev/null || true)
  case $words in
  *openmpi* | *open-mpi* | *ompi*) echo openmpi ;;
  *mpich* | *impi* | *intel*mpi* | *mvapich* | *-lmpi*) echo mpich ;;
  esac
}

# compiler FAMILY: its mpicc.
compiler() {
  if [[ -n ${MPICC:-} ]]; then echo "$MPICC"; return; fi
  if command -v "mpicc.$1"; then return; fi
  if command -v mpicc >/dev/null && [[ $(kind mpicc) == "$1" ]]; then command -v mpicc; return; fi
  return 1
}

built=0
for family in $families; do
  if ! mpicc=$(compiler "$family"); then
    case $family in
    openmpi) package="libopenmpi-dev openmpi-bin" ;;
    mpich) package="libmpich-dev mpich" ;;
    esac
    say "$family: no compiler; install it (Debian: apt-get install --no-install-recommends $package libclang-dev) or set MPICC"
    continue
  fi
  # A folder each: the bindings are made from the headers of one family.
  say "$family: building with $mpicc"
  folder=$target/mpi-$family
  if ! (cd "$root/crates/mpi" && MPICC=$mpicc CARGO_TARGET_DIR=$folder cargo build --release --locked --quiet); then
    say "$family: the build failed; it needs $mpicc, its headers and libclang (Debian: apt-get install libclang-dev)" >&2
    continue
  fi
  mkdir -p "$out"
  file=$out/libretort_mpi_$family.so
  # By a rename, so that a run which has the old file open keeps it.
  cp "$folder/release/libretort_mpi.so" "$file.new"
  mv "$file.new" "$file"
  say "$family: $file"
  built=$((built + 1))
done
((built > 0)) || { say "nothing was built" >&2; exit 1; }
