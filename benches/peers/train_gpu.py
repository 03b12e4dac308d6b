"""PyTorch side of the GPU benchmark: eager training steps on one batch that stays on the device; prints one JSON line.

    python train_gpu.py --net imagenet_resnet50 --batch 256 --steps 20 --windows 3
    python train_gpu.py --net resnet8x4 --batch 2 --steps 1 --windows 1 --device cpu

Autocast to bf16 (or --precision f32, tf32), channels_last, cudnn.benchmark; forward, mean cross-entropy, backward, SGD with momentum
(PyTorch's default form of it). A window is timed from one synchronisation to the next, nothing is read back inside. The other side of
the comparison (`retort bench`) also copies the batch to the GPU and reads its losses in every step, so the peer does a little less.
ResNet-50 is torchvision's where that is installed, else that of nets.py, the same layers.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time

import torch
from torch.nn import functional as F

import nets


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="imagenet_resnet50", help="a name of nets.build: imagenet_resnet50, resnet8x4, wrn_16_2, ...")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="of a window")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "tf32", "f32"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return parser.parse_args()


def network(name, classes):
    """The network, and where it is from."""
    if name == "imagenet_resnet50":
        with contextlib.suppress(ImportError):
            from torchvision.models import resnet50
            return resnet50(num_classes=classes), "torchvision"
    return nets.build(name, classes), "nets.py"


class Trainer:
    def __init__(self, args):
        imagenet = args.net.startswith("imagenet_")
        self.side, classes = (224, 1000) if imagenet else (32, 100)
        self.device, self.half = args.device, args.precision == "bf16"
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
        torch.manual_seed(0)
        net, self.source = network(args.net, classes)
        self.net = net.to(args.device, memory_format=torch.channels_last).train()
        image = torch.randn(args.batch, 3, self.side, self.side, device=args.device)
        self.image = image.to(memory_format=torch.channels_last)
        self.label = torch.randint(0, classes, (args.batch,), device=args.device)
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(self):
        self.sgd.zero_grad(set_to_none=True)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.half):
            loss = F.cross_entropy(self.net(self.image), self.label)
        loss.backward()
        self.sgd.step()
        return loss.detach()

    def finish(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def window(self, steps):
        """Seconds of so many steps."""
        self.finish()
        begin = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        self.finish()
        seconds = time.perf_counter() - begin
        if not torch.isfinite(loss):
            sys.exit(f"loss is {loss.item()}: the times mean nothing")
        return seconds


def versions(device):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def main():
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    trainer = Trainer(args)
    if args.warmup > 0:
        trainer.window(args.warmup)
    rates = [args.batch * args.steps / trainer.window(args.steps) for _ in range(args.windows)]
    median = statistics.median(rates)
    memory = torch.cuda.max_memory_reserved() if args.device == "cuda" else None
    print(json.dumps({"peer": "torch eager, channels_last", "net": args.net, "source": trainer.source, "precision": args.precision,
                      "batch": args.batch, "side": trainer.side, "steps_per_window": args.steps,
                      "images_per_s": {"median": median, "min": min(rates), "max": max(rates)},
                      "windows": [{"images_per_s": r} for r in rates], "step_ms": 1e3 * args.batch / median,
                      "memory_bytes": memory, "versions": versions(args.device)}))


if __name__ == "__main__":
    main()
