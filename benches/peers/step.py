"""PyTorch side of the training-step comparison: forward, mean cross-entropy, backward, SGD with Nesterov momentum, on one fixed batch.

    python step.py --net cifar_resnet18 --batch 64 --threads 2 --steps 10 --warmup 5 [--json]
    python step.py ... --serve

f32, eager, channels_last; batch norm in train mode; the loss is not read back inside the timed part on a GPU. With --serve the program
warms up, prints {"ready": true, ...}, and then, for each line "N" on standard input, runs N steps and answers with one JSON line, so that
a driver can alternate it with another program in one sitting: A B A B ... End of input ends it.

GFLOP/s counts 2 x multiply-adds of conv and linear layers, three times (fprop, dgrad, wgrad), less the first conv's dgrad.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from torch.nn import functional as F

import nets


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="cifar_resnet18", help="a name of nets.build")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--side", type=int, help="image side; default 32, ImageNet form 224")
    parser.add_argument("--classes", type=int, help="default 100, ImageNet form 1000")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layout", default="channels_last", choices=["channels_last", "contiguous"])
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of text")
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    imagenet = args.net.startswith("imagenet_")
    args.side = args.side or (224 if imagenet else 32)
    args.classes = args.classes or (1000 if imagenet else 100)
    return args


def step_flops(net, side, batch):
    """FLOPs of one training step on `batch` images."""
    macs = [count for _, count in nets.layer_macs(net, side)]
    return 2 * batch * (3 * sum(macs) - macs[0])


class Trainer:
    def __init__(self, args):
        torch.set_num_threads(args.threads)
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        layout = torch.channels_last if args.layout == "channels_last" else torch.contiguous_format
        self.device = args.device
        self.net = nets.build(args.net, args.classes).to(args.device, memory_format=layout).train()
        self.flops = step_flops(self.net, args.side, args.batch)
        self.image = torch.randn(args.batch, 3, args.side, args.side, device=args.device).to(memory_format=layout)
        self.label = torch.randint(0, args.classes, (args.batch,), device=args.device)
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.forward = torch.compile(self.net) if args.compile else self.net

    def step(self):
        self.sgd.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.forward(self.image), self.label)
        loss.backward()
        self.sgd.step()
        return loss

    def finish(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def measure(self, steps):
        """Milliseconds of each step, and the processor milliseconds of all threads: on a shared machine, with one thread, those tell the load."""
        times, cpu = [], time.process_time()
        for _ in range(steps):
            self.finish()
            start = time.perf_counter()
            loss = self.step()
            self.finish()
            times.append(1e3 * (time.perf_counter() - start))
        if not torch.isfinite(loss):
            sys.exit(f"loss is {loss.item()} after {steps} steps: the times mean nothing")
        return times, 1e3 * (time.process_time() - cpu) / steps


def report(args, trainer, steps):
    times, cpu_ms = trainer.measure(steps)
    median = statistics.median(times)
    return {"peer": f"torch {torch.__version__.split('+')[0]}", "net": args.net, "batch": args.batch, "side": args.side, "threads": args.threads,
            "device": args.device, "layout": args.layout, "mode": "compile" if args.compile else "eager", "dtype": "f32", "steps": len(times),
            "median_ms": median, "min_ms": min(times), "max_ms": max(times), "cpu_ms": cpu_ms, "images_per_s": 1e3 * args.batch / median,
            "gflop_per_s": trainer.flops / median / 1e6, "gflop_per_step": trainer.flops / 1e9}


def serve(args, trainer):
    print(json.dumps({"ready": True, "net": args.net, "batch": args.batch, "threads": args.threads}), flush=True)
    for line in sys.stdin:
        try:
            steps = int(line)
        except ValueError:
            steps = 0
        answer = report(args, trainer, steps) if steps > 0 else {"error": f"expected a number of steps, got {line.strip()!r}"}
        print(json.dumps(answer), flush=True)


def main():
    args = arguments()
    trainer = Trainer(args)
    for _ in range(args.warmup):
        trainer.step()
    trainer.finish()
    if args.serve:
        serve(args, trainer)
        return
    result = report(args, trainer, args.steps)
    if args.json:
        print(json.dumps(result))
        return
    print("{net} batch {batch} side {side}, {threads} threads, {peer} {mode} {layout}: median {median_ms:.1f} ms (min {min_ms:.1f}, max {max_ms:.1f}, "
          "cpu {cpu_ms:.1f}, {steps} steps), {images_per_s:.1f} img/s, {gflop_per_s:.1f} GFLOP/s".format(**result))


if __name__ == "__main__":
    main()
