#!/usr/bin/env bash
# bind.sh: binds a rank to the NUMA node of its GPU, names the NIC nearest to it, and becomes the program.
#   mpirun -n 8 --bind-to none launch/bind.sh retort train RECIPE
#
# Assumes: Linux with sysfs; nvidia-smi for the GPUs' PCI addresses; numactl. What is missing is said on stderr and left
# out, and the program runs all the same. The GPU is that of the local rank, as the program takes it: the n-th that is visible,
# or the only one. CUDA counts by PCI address here, as nvidia-smi does (CUDA_DEVICE_ORDER, unless set).
# The NIC goes to UCX (UCX_NET_DEVICES, unless set), which MPI uses. NCCL is not told: it measures the same distances itself, and
# wants to see all NICs of a node. SYSFS names another sysfs, for tests.
set -euo pipefail
(($# > 0)) || { echo "usage: launch/bind.sh COMMAND…" >&2; exit 64; }
sysfs=${SYSFS:-/sys}
export CUDA_DEVICE_ORDER=${CUDA_DEVICE_ORDER:-PCI_BUS_ID}

local_rank=
for name in RETORT_LOCAL_RANK LOCAL_RANK OMPI_COMM_WORLD_LOCAL_RANK MPI_LOCALRANKID PMI_LOCAL_RANK MV2_COMM_WORLD_LOCAL_RANK \
  PALS_LOCAL_RANKID SLURM_LOCALID FLUX_TASK_LOCAL_ID JSM_NAMESPACE_LOCAL_RANK; do
  if [[ ${!name:-} =~ ^[0-9]+$ ]]; then local_rank=${!name}; break; fi
done
note() { echo "bind.sh: local rank ${local_rank:-?}: $*" >&2; }

# gpu_address: the PCI address of this rank's GPU, as sysfs writes it: 0000:1b:00.0.
gpu_address() {
  local visible devices wanted line index uuid address
  command -v nvidia-smi >/dev/null || { note "no nvidia-smi, not bound"; return 1; }
  devices=$(nvidia-smi --query-gpu=index,uuid,pci.bus_id --format=csv,noheader 2>/dev/null) || { note "nvidia-smi fails, not bound"; return 1; }
  wanted=$local_rank
  [[ $(wc -l <<<"$devices") -gt 1 ]] || wanted=0
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
    if ((${#visible[@]} == 1)); then wanted=${visible[0]}; else wanted=${visible[local_rank]:-none}; fi
  fi
  while IFS=', ' read -r index uuid address; do
    if [[ $wanted == "$index" || ($wanted == GPU-* && $uuid == "$wanted"*) ]]; then
      line=${address,,}
      echo "${line: -12}" # nvidia-smi writes eight digits of the domain, sysfs four
      return
    fi
  done <<<"$devices"
  note "nvidia-smi shows no GPU \"$wanted\", not bound"
  return 1
}

# distance A B: steps between two folders of sysfs by way of the bridge that they share.
distance() {
  local -a a b
  local shared=0
  IFS=/ read -ra a <<<"$1"
  IFS=/ read -ra b <<<"$2"
  while ((shared < ${#a[@]} && shared < ${#b[@]})) && [[ ${a[shared]} == "${b[shared]}" ]]; do shared=$((shared + 1)); done
  echo $((${#a[@]} + ${#b[@]} - 2 * shared))
}

# nearest_nic GPU: the NIC with a link that is fewest steps away; equal ones are dealt out by local rank.
nearest_nic() {
  local nic steps gpu least=1000000
  local -a near=()
  gpu=$(realpath "$1")
  for nic in "$sysfs"/class/infiniband/*; do
    if [[ ! -e $nic/device ]] || ! grep -qs ACTIVE "$nic"/ports/1/state; then continue; fi
    steps=$(distance "$gpu" "$(realpath "$nic/device")")
    if ((steps < least)); then least=$steps near=(); fi
    if ((steps == least)); then near+=("${nic##*/}"); fi
  done
  ((${#near[@]} > 0)) && echo "${near[local_rank % ${#near[@]}]}"
}

binder=()
if [[ -z $local_rank ]]; then
  note "no launcher gives a local rank, not bound"
elif address=$(gpu_address); then
  gpu=$sysfs/bus/pci/devices/$address
  node=$(cat "$gpu/numa_node" 2>/dev/null || echo -1)
  if [[ ! $node =~ ^[0-9]+$ ]]; then
    note "GPU $address: no NUMA node in $gpu/numa_node, not bound"
  elif ! command -v numactl >/dev/null; then
    note "GPU $address: no numactl (Debian: apt-get install numactl), not bound to NUMA node $node"
  elif ! numactl --cpunodebind="$node" --preferred="$node" true 2>/dev/null; then
    note "GPU $address: numactl may not use NUMA node $node (a cpuset without it?), not bound"
  else
    binder=(numactl --cpunodebind="$node" --preferred="$node")
    note "GPU $address, NUMA node $node"
  fi
  if [[ -z ${UCX_NET_DEVICES:-} && -e $gpu ]] && nic=$(nearest_nic "$gpu"); then
    export UCX_NET_DEVICES=$nic:1
    note "GPU $address, NIC $nic"
  fi
fi
exec ${binder[@]+"${binder[@]}"} "$@"
