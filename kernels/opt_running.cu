// opt_running: running means and variances of all batch norms in one launch. graph::Op BnRunning.
//   running <- keep running + take statistic, for each of the first micro-batches, in it each forward, in it each group, each `updates` times
//   nothing is written where *finite is 0
//
// blocks: [blocks], 128 channels of one layer's mean or variance each; forwards: carried statistics f32[groups][channels] of
// micro-batch 0, the next one slot_bytes further. finite: f32[1]; running: f32[channels]. 4-byte alignment.
// A thread owns a channel, so that the order is the CPU's. Bytes moved: each statistic and each running value once.
// Not measured on hardware.
#include "step.cuh"

struct RunningForward {
  const float *p;
  uint32_t groups, pad;
};
struct RunningBlock {
  float *running;
  uint32_t first_forward, forwards, channels, first_channel, updates, pad;
};
struct RunningArgs {
  const RunningBlock *blocks;
  const RunningForward *forwards;
  const float *finite;
  const Scalars *scalars;
  uint64_t slot_bytes;
  float keep, take;
};
static_assert(sizeof(RunningForward) == 16 && sizeof(RunningBlock) == 32 && sizeof(RunningArgs) == 48,
              "cuda/src/update.rs asserts the same");

extern "C" __global__ void __launch_bounds__(128) opt_running(const __grid_constant__ RunningArgs a) {
  if (*a.finite == 0.f) return;
  const RunningBlock b = a.blocks[blockIdx.x];
  const uint32_t channel = b.first_channel + threadIdx.x, micros = a.scalars->running;
  if (channel >= b.channels) return;
  float running = b.running[channel];
  for (uint32_t micro = 0; micro < micros; micro++) {
    for (uint32_t f = 0; f < b.forwards; f++) {
      const RunningForward forward = a.forwards[b.first_forward + f];
      const auto *p = (const float *)((const char *)forward.p + micro * a.slot_bytes) + channel;
      for (uint32_t g = 0; g < forward.groups; g++) {
        const float statistic = p[(size_t)g * b.channels];
        for (uint32_t u = 0; u < b.updates; u++) running = fmaf(a.keep, running, a.take * statistic);
      }
    }
  }
  b.running[channel] = running;
}
KERNEL_EXPORT(opt_running)
