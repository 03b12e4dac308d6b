"""Goldens of whole networks: nets/NAME.safetensors, and nets/table.json with names, shapes and counts.

Weights and image are not stored: the formula in README.md regenerates them. Published names, KCRS parameters, float64.
"""

import json
import math
from pathlib import Path

import torch
from torch.nn import functional as F

from common import F64, WRITTEN, fnv1a, save, set_weights, wave

import nets  # benches/peers/nets.py, on the path by way of common

# name: (classes, side of the golden, side of the count, params, BN params, keys, multiply-adds); figures from the papers'
# published implementations, counted once with hooks on every conv and linear layer. cifar_resnet34 has no published count.
GOLDEN = {
    "resnet8": (100, 32, 32, 83_892, 672, 56, 12_507_392),
    "resnet14": (100, 32, 32, 181_108, 1_120, 92, 26_663_168),
    "resnet20": (100, 32, 32, 278_324, 1_568, 128, 40_818_944),
    "resnet32": (100, 32, 32, 472_756, 2_464, 200, 69_130_496),
    "resnet44": (100, 32, 32, 667_188, 3_360, 272, 97_442_048),
    "resnet56": (100, 32, 32, 861_620, 4_256, 344, 125_753_600),
    "resnet110": (100, 32, 32, 1_736_564, 8_288, 668, 253_155_584),
    "resnet8x4": (100, 32, 32, 1_233_540, 2_752, 62, 177_071_104),
    "resnet32x4": (100, 32, 32, 7_433_860, 9_920, 206, 1_083_040_768),
    "wrn_16_1": (100, 32, 32, 180_916, 928, 82, 26_663_168),
    "wrn_16_2": (100, 32, 32, 703_284, 1_824, 83, 101_118_464),
    "wrn_40_1": (100, 32, 32, 569_780, 2_720, 226, 83_286_272),
    "wrn_40_2": (100, 32, 32, 2_255_156, 5_408, 227, 327_610_880),
    "cifar_resnet18": (100, 32, 32, 11_220_132, 9_600, 122, 555_468_800),
    "cifar_resnet34": (100, 32, 32, None, None, None, None),
    "cifar_resnet50": (100, 32, 32, 23_705_252, 53_120, 320, 1_298_014_208),
    "imagenet_resnet18": (1000, 64, 224, 11_689_512, 9_600, 122, 1_814_073_344),
    "imagenet_resnet34": (1000, 64, 224, 21_797_672, 17_024, 218, 3_663_761_408),
    "imagenet_resnet50": (1000, 64, 224, 25_557_032, 53_120, 320, 4_089_184_256),
}
TABLE_ONLY = {  # counts alone
    "resnet14x2": (100, None, 32, 703_732, 2_272, 98, 101_118_464),
    "resnet38x2": (100, None, 32, 2_255_604, 5_856, 242, 327_610_880),
    "resnet38x4": (100, None, 32, 8_983_940, 11_712, 242, 1_309_533_184),
    "imagenet_resnet101": (1000, None, 224, 44_549_160, 105_344, 626, 7_801_405_440),
    "imagenet_wide_resnet50_2": (1000, None, 224, 68_883_240, 68_224, 320, 11_398_021_120),
    "imagenet_resnext50_32x4d": (1000, None, 224, 25_028_904, 68_224, 320, 4_230_479_872),
}
SAMPLE = 512
BATCH = 2
IMAGENET_CLASSES = 200  # of the goldens, to keep them small; the counts are at 1000


def bn_layers(net):
    return [(name, m) for name, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]


def sample(value):
    """A tensor of more than SAMPLE elements becomes flat: every stride-th in row-major order, stride = ceil(elements / SAMPLE)."""
    return value if value.numel() <= SAMPLE else value.reshape(-1)[::-(-value.numel() // SAMPLE)]


def evaluate(net, image, labels):
    """Every value of a golden, by name. The training forward comes last: it moves the running statistics."""
    tensors = {}
    net.eval()
    with torch.no_grad():
        tensors["out.logits"] = net(image)
    net.train()
    taps = []
    logits = net(image, taps)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    tensors |= {"out.logits_train": logits, "out.loss": loss}
    for i, tap in enumerate(taps):
        tensors[f"out.tap.{i}"] = tap.mean((2, 3)) if tap.dim() == 4 else tap
    for name, p in net.named_parameters():
        tensors[f"gradnorm.{name}"] = p.grad.norm()
        tensors[f"gradmark.{name}"] = (p.grad * (1.5 + wave("mark." + name, p.shape))).norm()  # sees permuted elements
    for name in ("conv1.weight", f"{head_of(net)}.weight", f"{head_of(net)}.bias"):
        tensors[f"grad.{name}"] = net.get_parameter(name).grad
    layers = bn_layers(net)
    for name, bn in (layers[0], layers[-1]):
        tensors[f"out.{name}.running_mean"] = bn.running_mean
        tensors[f"out.{name}.running_var"] = bn.running_var
    return {k: sample(v.detach()).clone() for k, v in tensors.items()}


def head_of(net):
    return getattr(net, "head", "fc")


def distance(a, b):
    return ((a - b).norm() / b.norm()).item() if b.norm() > 0 else a.norm().item()


def nudge(module, args, out):
    """Forward hook: moves every element by one rounding, up or down."""
    return out * (1 + 2.0 ** -52 * wave("nudge", out.shape).sign())


def tolerances(tensors, nudged):
    """Per kind of value: 100 times what one rounding after every layer does, as a power of ten, at least 1e-12."""
    kinds = {"eval": ["out.logits"], "train": [k for k in tensors if k.startswith("out.") and k != "out.logits"],
             "gradient": [k for k in tensors if k.startswith("grad")]}
    moved = {kind: max(distance(nudged[k], tensors[k]) for k in names) for kind, names in kinds.items()}
    return {kind: 10.0 ** math.ceil(math.log10(max(100 * m, 1e-12))) for kind, m in moved.items()}


def golden(out, name):
    classes, side = GOLDEN[name][:2]
    classes = min(classes, IMAGENET_CLASSES)
    image = wave("image", (BATCH, 3, side, side))
    labels = torch.arange(BATCH) * 7 % classes
    net = set_weights(nets.build(name, classes).to(F64))
    tensors = evaluate(net, image, labels)
    net = set_weights(nets.build(name, classes).to(F64))
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(nudge)
    tolerance = tolerances(tensors, evaluate(net, image, labels))
    layers = bn_layers(net)
    attr = {"net": name, "classes": classes, "image": list(image.shape), "labels": labels.tolist(), "sample": SAMPLE,
            "bn": [layers[0][0], layers[-1][0]], "tolerance": tolerance}
    save(out, f"nets/{name}", tensors, attr, max(tolerance.values()), 0, [__file__, nets.__file__])
    print(f"{name}: loss {tensors['out.loss']:.6f}, logits {tensors['out.logits'].norm():.3g} and {tensors['out.logits_train'].norm():.3g}, tolerance {tolerance}")


def table(out):
    rows = {}
    for name, (classes, _, side, *published) in (GOLDEN | TABLE_ONLY).items():
        with torch.device("meta"):
            net = nets.build(name, classes)
        state = net.state_dict()
        counted = [sum(p.numel() for p in net.parameters()), sum(p.numel() for _, bn in bn_layers(net) for p in bn.parameters()),
                   len(state), sum(macs for _, macs in nets.layer_macs(net, side))]
        if published[0] is not None:
            assert counted == published, f"{name}: counted {counted}, published {published}"
        rows[name] = dict(zip(("params", "bn_params", "keys", "macs"), counted)) | {
            "classes": classes, "side": side}
        if name in GOLDEN:
            rows[name]["state_dict"] = [[k, list(v.shape)] for k, v in state.items()]
    path = Path(out) / "nets" / "table.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in rows.items()) + "\n}\n")
    WRITTEN.append(path)


def main(out):
    assert [fnv1a(s) for s in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]
    table(out)
    for name in GOLDEN:
        golden(out, name)
