"""Goldens of whole networks: nets/NAME.safetensors, and nets/table.json with names, shapes and counts.

Weights and image are not stored: the formula in README.md regenerates them. Published names, KCRS parameters, float64.
"""

import json
import math
from pathlib import Path

import torch
from torch.nn import functional as F

from common import F64, WRITTEN, fnv1a, save, set_weights, wave

import mobile_nets  # benches/peers, on the path by way of common
import nets

# name: (classes, side of the golden, side of the count, params, BN params, keys, multiply-adds); figures from the papers'
# published implementations, counted once with hooks on every conv and linear layer. None where there is no published count.
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
    "imagenet_resnext50_32x4d": (1000, 64, 224, 25_028_904, 68_224, 320, 4_230_479_872),
    "resnet10x2_imagenet": (1000, 64, 224, 20_543_016, 11_648, 80, 2_996_330_496),
    "preact_resnet10": (100, 32, 32, 4_946_724, 3_072, 59, 253_478_912),
    "preact_resnet18": (100, 32, 32, 11_217_444, 6_912, 107, 555_468_800),
    "skl_resnet50": (100, 32, 32, 23_697_572, 45_440, 300, 1_298_014_208),
    "mixskd_resnet18": (100, 32, 32, 11_220_132, 9_600, 122, 555_468_800),
    "vgg8": (100, 32, 32, 3_965_028, 2_944, 37, 96_192_512),
    "vgg11": (100, 64, 32, 9_277_284, 5_504, 58, 209_438_720),  # at 64 for the fourth pool
    "vgg13": (100, 32, 32, 9_462_180, 5_888, 72, 284_936_192),
    "mobilenetv1": (1000, 64, 224, 4_231_976, 21_888, 164, 568_740_352),
    "mobilenetv2": (100, 32, 32, 812_836, 18_368, 320, 6_523_648),
    "mobilenetv2_tinyimagenet": (200, 64, 64, 2_497_480, 34_176, 373, 215_708_992),
    "mobilenet_v2": (1000, 64, 224, 3_504_872, 34_112, 314, 300_774_272),
    "shufflev1": (100, 32, 32, 949_258, 23_736, 296, 38_691_456),
    "shufflev2": (100, 32, 32, 1_355_528, 16_180, 338, 44_504_448),
    "shufflenet_v2_x1_0": (1000, 64, 224, 2_278_604, 16_180, 338, 144_907_992),
    "cifar_densenet121": (100, 32, 32, 7_048_548, 83_520, 722, 888_442_880),
    "densenet40_12": (100, 32, 32, 1_060_132, 18_096, None, 264_853_248),
    "densenet121": (1000, 64, 224, 7_978_856, 83_648, 727, 2_834_161_664),
    "linear": (10, 1, 1, None, None, None, None),
}
TABLE_ONLY = {  # counts alone
    "resnet38": (100, None, 32, 569_972, 2_912, 236, 83_286_272),
    "resnet116": (100, None, 32, 1_833_780, 8_736, 704, 267_311_360),
    "resnet14x2": (100, None, 32, 703_732, 2_272, 98, 101_118_464),
    "resnet38x2": (100, None, 32, 2_255_604, 5_856, 242, 327_610_880),
    "resnet110x2": (100, None, 32, 6_911_220, 16_608, 674, 1_007_088_128),
    "resnet14x4": (100, None, 32, 2_783_620, 4_544, 98, 403_563_520),
    "resnet38x4": (100, None, 32, 8_983_940, 11_712, 242, 1_309_533_184),
    "imagenet_resnet101": (1000, None, 224, 44_549_160, 105_344, 626, 7_801_405_440),
    "imagenet_wide_resnet50_2": (1000, None, 224, 68_883_240, 68_224, 320, 11_398_021_120),
    "resnet18x2_imagenet": (1000, None, 224, 45_618_216, 19_328, 128, 6_695_706_624),
    "resnet34x2_imagenet": (1000, None, 224, 86_036_008, 34_176, 224, 14_094_458_880),
    "wrn_28_10": (100, None, 32, None, None, None, None),
    "preact_resnet34": (100, None, 32, 21_325_604, 14_336, 203, 1_159_448_576),
    "mixskd_resnet50": (100, None, 32, 23_705_252, 53_120, 320, 1_298_014_208),
    "vgg16": (100, None, 32, 14_774_436, 8_448, 93, 398_182_400),
    "vgg19": (100, None, 32, 20_086_692, 11_008, 114, 511_428_608),
    "mobilenetv2_1_0": (100, None, 32, 2_353_060, 34_176, 320, 22_381_056),
    "shufflev2_1_5": (100, None, 32, 2_580_548, 23_440, 338, 93_762_048),
}
SAMPLE = 512
BATCH = 2
IMAGENET_CLASSES = 200  # of the goldens, to keep them small; the counts are at 1000
SMALLER = {"cifar_densenet121": (40, 80), "densenet121": (40, 80)}  # classes and sample where there are many parameters


def bn_layers(net):
    return [(name, m) for name, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]


def sampled(value, most):
    """A tensor of more than `most` elements becomes flat: every stride-th in row-major order, stride = ceil(elements / most)."""
    return value if value.numel() <= most else value.reshape(-1)[::-(-value.numel() // most)]


def vanishes(net, name):
    """Is this a bias that a batch norm behind it takes away again? Its gradient is rounding alone."""
    kind = name.rpartition(".")
    return kind[2] == "bias" and net.get_parameter(name).grad.norm() < 1e-9 * net.get_parameter(f"{kind[0]}.weight").grad.norm()


def evaluate(net, image, labels, sample):
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
    params = {name: p for name, p in net.named_parameters() if not vanishes(net, name)}
    for name, p in params.items():
        tensors[f"gradnorm.{name}"] = p.grad.norm()
        tensors[f"gradmark.{name}"] = (p.grad * (1.5 + wave("mark." + name, p.shape))).norm()  # sees permuted elements
    for name in (next(iter(params)), f"{head_of(net)}.weight", f"{head_of(net)}.bias"):
        if name in params:
            tensors[f"grad.{name}"] = params[name].grad
    layers = bn_layers(net)
    for name, bn in (*layers[:1], *layers[-1:]):
        tensors[f"out.{name}.running_mean"] = bn.running_mean
        tensors[f"out.{name}.running_var"] = bn.running_var
    return {k: sampled(v.detach(), sample).clone() for k, v in tensors.items()}


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
    classes, sample = SMALLER.get(name, (min(classes, IMAGENET_CLASSES), SAMPLE))
    image = wave("image", (BATCH, 3, side, side))
    labels = torch.arange(BATCH) * 7 % classes
    net = set_weights(nets.build(name, classes).to(F64))
    tensors = evaluate(net, image, labels, sample)
    net = set_weights(nets.build(name, classes).to(F64))
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(nudge)
    tolerance = tolerances(tensors, evaluate(net, image, labels, sample))
    layers = bn_layers(net)
    attr = {"net": name, "classes": classes, "image": list(image.shape), "labels": labels.tolist(), "sample": sample,
            "bn": [layer for layer, _ in (*layers[:1], *layers[-1:])], "tolerance": tolerance}
    zero = [param for param, _ in net.named_parameters() if f"gradnorm.{param}" not in tensors]
    if zero:
        attr["zero"] = zero
    save(out, f"nets/{name}", tensors, attr, max(tolerance.values()), 0, [__file__, nets.__file__, mobile_nets.__file__])
    print(f"{name}: loss {tensors['out.loss']:.6f}, logits {tensors['out.logits'].norm():.3g} and {tensors['out.logits_train'].norm():.3g}, tolerance {tolerance}")


def table(out):
    rows = {}
    for name, (classes, _, side, *published) in (GOLDEN | TABLE_ONLY).items():
        with torch.device("meta"):
            net = nets.build(name, classes)
        state = net.state_dict()
        counted = [sum(p.numel() for p in net.parameters()), sum(p.numel() for _, bn in bn_layers(net) for p in bn.parameters()),
                   len(state), sum(macs for _, macs in nets.layer_macs(net, side))]
        for count, figure in zip(counted, published):
            assert figure is None or count == figure, f"{name}: counted {counted}, published {published}"
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
