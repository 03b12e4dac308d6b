"""Goldens of whole training steps: steps/NAME.safetensors. resnet8 at full width, 8 x 8 images, 5 classes, float64, three steps.

Weights come from the formula in README.md, the teacher's with "teacher." before each name. Images are stored NHWC per step
(`in.image.0` ..), parameters by published name in KCRS. Gradients are those of the first step, before decay and momentum.
"""

import torch
from torch import nn

from common import F64, Draw, nchw, save, seed_of, set_weights
from make_losses import IPS_MODES, ce, ips, kl

import make_losses
import nets  # benches/peers/nets.py, on the path by way of common

CLASSES, SIDE, BATCH, STEPS, CELL = 5, 8, 4, 3, 2
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
PARAMS = ("conv1.weight", "layer2.0.downsample.0.weight", "layer3.0.bn2.weight", "layer3.0.bn2.bias", "fc.weight", "fc.bias")
STATES = ("conv1.weight", "fc.weight", "fc.bias", "bn1.weight", "bn1.running_mean", "bn1.running_var",
          "layer3.0.bn2.running_mean", "layer3.0.bn2.running_var")


class GroupedBatchNorm(nn.BatchNorm2d):
    """Statistics over two equal runs of the batch; running statistics move once per run, in order."""

    def forward(self, x):
        return torch.cat([super(GroupedBatchNorm, self).forward(run) for run in x.chunk(2)]) if self.training else super().forward(x)


def student():
    return set_weights(nets.build("resnet8", CLASSES).to(F64)).train()


def group_statistics(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GroupedBatchNorm
    return net


def run(out, name, attr, net, loss, labels=BATCH, extra=None, clip=None):
    """loss(net, image NHWC, label, step) -> ({term: value}, logits), the terms summing to the loss; three steps on three batches."""
    d = Draw(seed_of(name))
    tensors = {}
    sgd = torch.optim.SGD(net.parameters(), **SGD)
    for step in range(STEPS):
        image, label = d.normal(BATCH, SIDE, SIDE, 3), d.ints(CLASSES, labels)
        tensors |= {f"in.image.{step}": image, f"in.label.{step}": label}
        if extra:
            tensors |= {f"in.{k}.{step}": v for k, v in extra(d, step).items()}
        terms, logits = loss(net, image, label, {k: v for k, v in tensors.items() if k.endswith(f".{step}")})
        total = sum(terms.values())
        sgd.zero_grad()
        total.backward()
        tensors |= {f"out.{k}.{step}": v for k, v in terms.items()} | {f"out.loss.{step}": total, f"out.logits.{step}": logits}
        if step == 0:
            tensors |= {f"grad.{k}": net.get_parameter(k).grad.clone() for k in PARAMS}
        if clip:
            tensors[f"out.norm.{step}"] = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        sgd.step()
        if step in (0, STEPS - 1):
            tensors |= {f"out.after{step + 1}.{k}": net.state_dict()[k].clone() for k in STATES}
    attr = {"net": "resnet8", "classes": CLASSES, "side": SIDE, "sgd": SGD, "clip_norm": clip} | attr
    save(out, f"steps/{name}", tensors, attr, 1e-11, seed_of(name), [__file__, make_losses.__file__, nets.__file__])


def cross_entropy(net, image, label, given):
    logits = net(nchw(image))
    return {"ce": ce(logits, label)}, logits


def distillation(out):
    teacher = set_weights(nets.build("resnet8", CLASSES).to(F64), "teacher.").eval()

    def loss(net, image, label, given):
        with torch.no_grad():
            target = teacher(nchw(image))
        logits = net(nchw(image))
        return {"ce": 0.1 * ce(logits, label), "kd": 0.9 * kl(target, logits, 4.0)}, logits

    run(out, "kd", {"method": "kd", "temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9, "teacher": "resnet8, eval mode"}, student(), loss)


def exchange(image, mask):
    """The first half of the batch is a, the second b; marked cells change places."""
    a, b = image.chunk(2)
    rows = torch.arange(SIDE) // CELL
    pick = mask[:, rows.view(-1, 1) * (SIDE // CELL) + rows].bool().unsqueeze(-1)
    return torch.cat([torch.where(pick, b, a), torch.where(pick, a, b)])


def patch_swap(out):
    def loss(mode):
        def terms(net, image, label, given):
            mask = next(v for k, v in given.items() if k.startswith("in.mask"))
            logits = net(nchw(exchange(image, mask)))
            a, b = logits.chunk(2)
            cross, distil = ips(a, b, label, 4.0, 1.0, mode)
            return {"ce": cross, "kd": distil}, logits
        return terms

    def masks(d, step):
        return {"mask": d.ints(2, BATCH // 2, (SIDE // CELL) ** 2, dtype=torch.uint8)}

    for mode in IPS_MODES:
        attr = {"method": "ips", "kl": mode, "temperature": 4.0, "alpha": 1.0, "cell": CELL, "bn_groups": 1}
        run(out, f"ips_{mode}", attr, student(), loss(mode), BATCH // 2, masks)
    attr = {"method": "ips", "kl": "two_way_sg", "temperature": 4.0, "alpha": 1.0, "cell": CELL, "bn_groups": 2}
    run(out, "ips_split", attr, group_statistics(student()), loss("two_way_sg"), BATCH // 2, masks)


def main(out):
    run(out, "ce", {"method": "ce"}, student(), cross_entropy)
    run(out, "ce_clip", {"method": "ce"}, student(), cross_entropy, clip=0.5)
    distillation(out)
    patch_swap(out)
