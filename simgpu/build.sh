#!/usr/bin/env bash
# Builds the stand-in GPU: simgpu/build.sh OUT [plain|asan|tsan]  ->  OUT/libcuda.so.1 with every kernel of kernels/ in it, and
# OUT/libnccl.so.2, the stand-in NCCL over it.
# Needs g++. Objects that are newer than all sources they may include are kept. SIMGPU_KERNELS: other kernel files instead.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: simgpu/build.sh OUT [plain|asan|tsan]}
flavour=${2:-plain}
mkdir -p "$out/obj"
out=$(cd "$out" && pwd)

# gnu2: threadIdx and the like are found through a thread-local pointer, which this dialect makes cheap in a shared object.
common=(-std=c++17 -g -fPIC -mtls-dialect=gnu2 -fvisibility=hidden -ffp-contract=off -march=x86-64-v3 -Wall -Wextra -Wno-unknown-pragmas
  -I"$here/include" -I"$here/src" -I"$here/../kernels/include" ${SIMGPU_CXXFLAGS:-})
case $flavour in
  plain) kernel=(-O2) runtime=(-O2) link=() ;;
  # -O1: at -O2 g++ makes memset calls inside the runtime that the sanitizer's library intercepts.
  asan) kernel=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined) runtime=(-O1 -DSIMGPU_ASAN) link=(-fsanitize=address,undefined) ;;
  tsan) kernel=(-O1 -fsanitize=thread) runtime=(-O1 -DSIMGPU_TSAN) link=(-fsanitize=thread) ;;
  *) echo "simgpu/build.sh: unknown flavour $flavour; expected plain, asan or tsan" >&2; exit 2 ;;
esac

flags="${common[*]} kernel ${kernel[*]} runtime ${runtime[*]}"
if [[ -f $out/obj/flags && $(<"$out/obj/flags") != "$flags" ]]; then rm -f "$out"/obj/*.o; fi
printf '%s' "$flags" >"$out/obj/flags"

# compile SOURCE OBJECT FLAGS...
compile() {
  local source=$1 object=$2
  shift 2
  local headers=("$here/include" "$here/../kernels/include")
  [[ $source == "$here/src/"* ]] && headers=("$here/include" "$here"/src/*.h)
  [[ $source == "$here/nccl/"* ]] && headers=("$here"/nccl/*.h)
  if [[ -f $object ]] && [[ -z $(find "$source" "${headers[@]}" -newer "$object" -print -quit) ]]; then
    return
  fi
  g++ -x c++ "${common[@]}" "$@" -c "$source" -o "$object.new" && mv "$object.new" "$object"
}

jobs=$(nproc)
objects=()
pids=()
failed=0
reap() { wait "${pids[0]}" || failed=1; pids=("${pids[@]:1}"); }
add() {
  objects+=("$2")
  compile "$@" &
  pids+=($!)
  if ((${#pids[@]} >= jobs)); then reap; fi
}
for f in "$here"/src/*.cpp; do add "$f" "$out/obj/$(basename "$f").o" "${runtime[@]}"; done
add "$here/src/static_shared/begin.cpp" "$out/obj/begin.o" "${runtime[@]}"
for f in ${SIMGPU_KERNELS:-"$here"/../kernels/*.cu}; do add "$f" "$out/obj/$(basename "$f").o" "${kernel[@]}"; done
add "$here/src/static_shared/end.cpp" "$out/obj/end.o" "${runtime[@]}"
cuda=("${objects[@]}")
objects=()
for f in "$here"/nccl/*.cpp; do add "$f" "$out/obj/nccl_$(basename "$f").o" -O2; done
while ((${#pids[@]})); do reap; done
((failed == 0)) || { echo "simgpu/build.sh: some files do not compile" >&2; exit 1; }
g++ -shared -Wl,-soname,libcuda.so.1 -Wl,--allow-shlib-undefined "${link[@]}" "${cuda[@]}" -o "$out/libcuda.so.1.new" -lpthread
mv "$out/libcuda.so.1.new" "$out/libcuda.so.1"
g++ -shared -Wl,-soname,libnccl.so.2 "${objects[@]}" -o "$out/libnccl.so.2.new" -lpthread -ldl
mv "$out/libnccl.so.2.new" "$out/libnccl.so.2"
