#!/usr/bin/env bash
# Fetches cuobjdump and nvdisasm (5 MB) from PyPI into .cuda/disassembler, where the test of compiled kernels finds them
# (crates/cuda/tests/budget). Does nothing where they are there already. Needs python3 with pip; tools/fetch-nvcc.sh comes first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/.cuda/disassembler

if [[ -x $dir/nvidia/cu13/bin/cuobjdump && -x $dir/nvidia/cu13/bin/nvdisasm ]]; then
  echo "tools/fetch-disassembler.sh: cuobjdump and nvdisasm are in .cuda already"
  exit 0
fi
python3 -m pip --version >/dev/null 2>&1 || { echo "tools/fetch-disassembler.sh: python3 with pip is missing; install python3-pip" >&2; exit 1; }
# 13.2 reads what nvcc 13.0 makes.
rm -rf "$dir"
python3 -m pip install -q --no-deps --target "$dir" nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51
echo "tools/fetch-disassembler.sh: done"
