#!/usr/bin/env bash
# Fetches the CUDA 13.0 compiler (nvcc, no GPU or driver needed) from PyPI into .cuda/ of this checkout, where the build finds
# it: 105 MB down, 271 MB on disk. Does nothing where it is there already. Needs python3 with pip, and g++ to compile kernels.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/.cuda
nvcc=$dir/nvidia/cu13/bin/nvcc
version=13.0.88

if [[ -x $nvcc ]] && "$nvcc" --version | grep -qF "V$version"; then
  echo "tools/fetch-nvcc.sh: nvcc $version is in .cuda already"
  exit 0
fi
command -v python3 >/dev/null || { echo "tools/fetch-nvcc.sh: python3 is missing; install python3 and pip" >&2; exit 1; }
python3 -m pip --version >/dev/null 2>&1 || { echo "tools/fetch-nvcc.sh: python3 has no pip; install python3-pip" >&2; exit 1; }
command -v g++ >/dev/null || echo "tools/fetch-nvcc.sh: note: g++ is missing; nvcc needs it to compile" >&2

# All five are pinned, and nothing is resolved: nvcc alone pulls companions of another version, and that mix does not compile.
echo "tools/fetch-nvcc.sh: installing nvcc $version into .cuda (105 MB)"
new=$root/.cuda.new
rm -rf "$new"
trap 'rm -rf "$new"' EXIT
python3 -m pip install -q --no-deps --target "$new" \
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
"$new/nvidia/cu13/bin/nvcc" --version | grep -qF "V$version" || {
  echo "tools/fetch-nvcc.sh: what was installed is not nvcc $version" >&2
  exit 1
}
rm -rf "$dir"
mv "$new" "$dir"
touch "$root/crates/cuda/build.rs"  # a build before this one found no compiler
echo "tools/fetch-nvcc.sh: done; build again and the kernels are compiled and embedded"
