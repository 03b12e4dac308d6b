"""Networks in PyTorch, written from their published layer tables; parameter names and key order are the published ones.

Used twice: as the speed peer (step.py) and as the reference of the network goldens (tests/goldens/make_nets.py).
build(name, classes) -> Module; module(x, taps) -> logits. x: [N, 3, H, W]. If `taps` is a list, the maps f0, f1, ... and at last
the pooled vector are appended to it. Pools are global, so any input size works.

Sources: He et al. 2015 (resnet{6n+2}, ImageNet nets), Zagoruyko and Komodakis 2016 (wrn_d_w), He et al. 2016 (pre-activation), Simonyan
and Zisserman 2014 (VGG), Huang et al. 2016 (DenseNet); mobile_nets.py has MobileNets and ShuffleNets.
"""

import torch
from torch import nn
from torch.nn import functional as F

from mobile_nets import (MobileNetV1, MobileNetV2, MobileNetV2ImageNet, MobileNetV2Tiny, ShuffleV1, ShuffleV2, ShuffleV2ImageNet,
                         conv)


class Block(nn.Module):
    """Post-activation residual block: basic (two 3x3) or bottleneck (1x1, strided 3x3, 1x1)."""

    def __init__(self, cin, inner, cout, stride, bottleneck, groups, shortcut, shortcut_bn):
        super().__init__()
        self.bottleneck, self.shortcut_name = bottleneck, None
        if bottleneck:
            self.conv1, self.bn1 = conv(cin, inner, 1), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = conv(inner, inner, 3, stride, groups), nn.BatchNorm2d(inner)
            self.conv3, self.bn3 = conv(inner, cout, 1), nn.BatchNorm2d(cout)
        else:
            self.conv1, self.bn1 = conv(cin, cout, 3, stride), nn.BatchNorm2d(cout)
            self.conv2, self.bn2 = conv(cout, cout, 3), nn.BatchNorm2d(cout)
        if stride != 1 or cin != cout:
            self.shortcut_name = shortcut
            layers = [conv(cin, cout, 1, stride)] + ([nn.BatchNorm2d(cout)] if shortcut_bn else [])
            setattr(self, shortcut, nn.Sequential(*layers))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (getattr(self, self.shortcut_name)(x) if self.shortcut_name else x))


class ResNet(nn.Module):
    """stem conv, BN, ReLU [, max pool]; stages layer1..; global average; linear head."""

    def __init__(self, stem, widths, blocks, strides, classes, bottleneck=False, groups=1, base=64, imagenet=False,
                 shortcut="downsample", head="fc", shortcut_bn=True, stem_relu=True):
        super().__init__()
        self.imagenet, self.head, self.stages, self.stem_relu = imagenet, head, len(widths), stem_relu
        self.conv1 = conv(3, stem, 7, 2) if imagenet else conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        cin = stem
        for i, (width, n, stride) in enumerate(zip(widths, blocks, strides)):
            inner, cout = (width * base // 64 * groups, 4 * width) if bottleneck else (width, width)
            stage = []
            for b in range(n):
                stage.append(Block(cin, inner, cout, stride if b == 0 else 1, bottleneck, groups, shortcut, shortcut_bn))
                cin = cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        setattr(self, head, nn.Linear(cin, classes))

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        x = self.bn1(self.conv1(x))
        x = F.relu(x) if self.stem_relu else x
        taps.append(x)  # before the max pool
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
            taps.append(x)
        taps.append(x.mean((2, 3)))
        return getattr(self, self.head)(taps[-1])


class WideBlock(nn.Module):
    """Pre-activation block. The projection has no BN and is fed by the activated input; the identity shortcut is the raw input."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), conv(cin, cout, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), conv(cout, cout, 3)
        self.project = cin != cout
        if self.project:
            self.convShortcut = conv(cin, cout, 1, stride)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (self.convShortcut(a) if self.project else x)


class WideStage(nn.Module):
    def __init__(self, cin, cout, blocks, stride):
        super().__init__()
        self.layer = nn.Sequential(*(WideBlock(cin if b == 0 else cout, cout, stride if b == 0 else 1) for b in range(blocks)))

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """wrn_{6n+4}_w: conv, three stages, BN, ReLU, global average, linear. Maps in `taps` are raw sums."""

    def __init__(self, depth, width, classes):
        super().__init__()
        n, c = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = conv(3, c[0], 3)
        self.block1, self.block2, self.block3 = (WideStage(c[i], c[i + 1], n, s) for i, s in enumerate((1, 2, 2)))
        self.bn1 = nn.BatchNorm2d(c[3])
        self.fc = nn.Linear(c[3], classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        taps.append(self.conv1(x))
        for stage in (self.block1, self.block2, self.block3):
            taps.append(stage(taps[-1]))
        taps.append(F.relu(self.bn1(taps[-1])).mean((2, 3)))
        return self.fc(taps[-1])


class PreActBlock(nn.Module):
    """Basic block of BN, ReLU, conv. The projection has no BN; both it and the identity shortcut see the activated input."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), conv(cin, cout, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), conv(cout, cout, 3)
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(conv(cin, cout, 1, stride))

    def forward(self, x):
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (self.shortcut(a) if hasattr(self, "shortcut") else a)


class PreActResNet(nn.Module):
    """conv, BN, ReLU; four stages; global average of the raw sum; linear."""

    def __init__(self, blocks, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        cin = 64
        for i, n in enumerate(blocks):
            cout = 64 * 2 ** i
            stage = []
            for b in range(n):
                stage.append(PreActBlock(cin, cout, 2 if i > 0 and b == 0 else 1))
                cin = cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(cin, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        taps.append(F.relu(self.bn1(self.conv1(x))))
        for i in range(4):
            taps.append(getattr(self, f"layer{i + 1}")(taps[-1]))
        taps.append(taps[-1].mean((2, 3)))
        return self.fc(taps[-1])


class VGG(nn.Module):
    """Five blocks of conv with bias, BN, ReLU; max pools after three, after four at height 64; global average; linear."""

    head = "classifier"

    def __init__(self, convs, classes):
        super().__init__()
        cin = 3
        for b, (n, cout) in enumerate(zip(convs, (64, 128, 256, 512, 512))):
            layers = []
            for _ in range(n):
                layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU()]
                cin = cout
            setattr(self, f"block{b}", nn.Sequential(*layers[:-1]))  # the last ReLU is outside
        self.classifier = nn.Linear(cin, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        high = x.shape[2] == 64
        for b in range(5):
            x = F.relu(getattr(self, f"block{b}")(x))
            taps.append(x)
            if b < 3 or (b == 3 and high):
                x = F.max_pool2d(x, 2, 2)
        taps.append(x.mean((2, 3)))
        return self.classifier(taps[-1])


class DenseLayer(nn.Module):
    """BN, ReLU, conv, once (3x3) or twice (1x1, 3x3). `first`: the new channels come before the input's."""

    def __init__(self, cin, growth, norm, bottleneck, first):
        super().__init__()
        self.name, self.bottleneck, self.first = norm, bottleneck, first
        setattr(self, f"{norm}1", nn.BatchNorm2d(cin))
        self.conv1 = conv(cin, 4 * growth, 1) if bottleneck else conv(cin, growth, 3)
        if bottleneck:
            setattr(self, f"{norm}2", nn.BatchNorm2d(4 * growth))
            self.conv2 = conv(4 * growth, growth, 3)

    def forward(self, x):
        y = self.conv1(F.relu(getattr(self, f"{self.name}1")(x)))
        if self.bottleneck:
            y = self.conv2(F.relu(getattr(self, f"{self.name}2")(y)))
        return torch.cat([y, x] if self.first else [x, y], 1)


class Transition(nn.Module):
    def __init__(self, cin, cout, norm):
        super().__init__()
        self.name = norm
        setattr(self, norm, nn.BatchNorm2d(cin))
        self.conv = conv(cin, cout, 1)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(getattr(self, self.name)(x))), 2, 2)


class DenseNet(nn.Module):
    """CIFAR forms: a bare 3x3 stem. Maps in `taps` are raw: the stem and the ends of the blocks."""

    head = "linear"

    def __init__(self, blocks, growth, bottleneck, classes):
        super().__init__()
        c = 64 if bottleneck else 16
        self.conv1, self.blocks = conv(3, c, 3), len(blocks)
        for b, n in enumerate(blocks):
            layers = [DenseLayer(c + i * growth, growth, "bn", bottleneck, bottleneck) for i in range(n)]
            setattr(self, f"dense{b + 1}", nn.Sequential(*layers))
            c += n * growth
            if b + 1 < len(blocks):
                out = c // 2 if bottleneck else c
                setattr(self, f"trans{b + 1}", Transition(c, out, "bn"))
                c = out
        self.bn, self.linear = nn.BatchNorm2d(c), nn.Linear(c, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        x = self.conv1(x)
        taps.append(x)
        for b in range(1, self.blocks + 1):
            x = getattr(self, f"dense{b}")(x)
            taps.append(x)
            if b < self.blocks:
                x = getattr(self, f"trans{b}")(x)
        taps.append(F.relu(self.bn(x)).mean((2, 3)))
        return self.linear(taps[-1])


class DenseNetImageNet(nn.Module):
    """torchvision's densenet121. The stem's tap is before the max pool, the others are raw concatenations."""

    head = "classifier"

    def __init__(self, classes):
        super().__init__()
        layers, c = {"conv0": conv(3, 64, 7, 2), "norm0": nn.BatchNorm2d(64)}, 64
        for b, n in enumerate((6, 12, 24, 16)):
            layers[f"denseblock{b + 1}"] = nn.Sequential()
            for i in range(n):
                layers[f"denseblock{b + 1}"].add_module(f"denselayer{i + 1}", DenseLayer(c, 32, "norm", True, False))
                c += 32
            if b < 3:
                layers[f"transition{b + 1}"] = Transition(c, c // 2, "norm")
                c //= 2
        layers["norm5"] = nn.BatchNorm2d(c)
        self.features = nn.Sequential()
        for name, layer in layers.items():
            self.features.add_module(name, layer)
        self.classifier = nn.Linear(c, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        for name, layer in self.features.named_children():
            x = layer(x)
            if name == "norm0":
                x = F.relu(x)
                taps.append(x)
                x = F.max_pool2d(x, 3, 2, 1)
            elif name.startswith("denseblock"):
                taps.append(x)
        taps.append(F.relu(x).mean((2, 3)))
        return self.classifier(taps[-1])


class Probe(nn.Module):
    """A matrix on the mean over the map."""

    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3, classes, bias=False)

    def forward(self, x, taps=None):
        x = x.mean((2, 3))
        if taps is not None:
            taps.append(x)
        return self.fc(x)


DEEP = {10: ([1, 1, 1, 1], False), 18: ([2, 2, 2, 2], False), 34: ([3, 4, 6, 3], False), 50: ([3, 4, 6, 3], True),
        101: ([3, 4, 23, 3], True)}
WIDTHS = {"": (16, [16, 32, 64]), "x2": (16, [32, 64, 128]), "x4": (32, [64, 128, 256])}
VGGS = {"vgg8": [1] * 5, "vgg11": [1, 1, 2, 2, 2], "vgg13": [2] * 5, "vgg16": [2, 2, 3, 3, 3], "vgg19": [2, 2, 4, 4, 4]}
OTHERS = {
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": lambda classes: MobileNetV2(0.5, classes),
    "mobilenetv2_1_0": lambda classes: MobileNetV2(1, classes),
    "mobilenetv2_tinyimagenet": MobileNetV2Tiny,
    "mobilenet_v2": MobileNetV2ImageNet,
    "shufflev1": ShuffleV1,
    "shufflev2": lambda classes: ShuffleV2((116, 232, 464), classes),
    "shufflev2_1_5": lambda classes: ShuffleV2((176, 352, 704), classes),
    "shufflenet_v2_x1_0": ShuffleV2ImageNet,
    "cifar_densenet121": lambda classes: DenseNet((6, 12, 24, 16), 32, True, classes),
    "densenet40_12": lambda classes: DenseNet((12, 12, 12), 12, False, classes),
    "densenet121": DenseNetImageNet,
    "linear": Probe,
}


def four_stages(depth, classes, widths=(64, 128, 256, 512), **form):
    blocks, bottleneck = DEEP[depth]
    return ResNet(64, widths, blocks, [1, 2, 2, 2], classes, bottleneck, **form)


def build(name, classes):
    """resnetN, resnetNx2, resnetNx4 (CIFAR, N = 6n+2), wrn_d_w, vggN, {cifar,preact,skl,mixskd}_resnetN, resnetNx2_imagenet,
    imagenet_{resnetN,wide_resnet50_2,resnext50_32x4d}, and the names of OTHERS."""
    if name in OTHERS:
        return OTHERS[name](classes)
    if name in VGGS:
        return VGG(VGGS[name], classes)
    if name.startswith("wrn_"):
        return WideResNet(*map(int, name[4:].split("_")), classes)
    if name.endswith("x2_imagenet"):
        depth = int(name.removeprefix("resnet").removesuffix("x2_imagenet"))
        return four_stages(depth, classes, (128, 256, 512, 1024), imagenet=True)
    family, _, rest = name.partition("_")
    if family == "imagenet":
        groups, base = {"wide_resnet50_2": (1, 128), "resnext50_32x4d": (32, 4)}.get(rest, (1, 64))
        depth = 50 if "50" in rest else int(rest.removeprefix("resnet"))
        return four_stages(depth, classes, groups=groups, base=base, imagenet=True)
    if rest:
        depth = int(rest.removeprefix("resnet"))
        if family == "preact":
            return PreActResNet(DEEP[depth][0], classes)
        form = {"cifar": {"shortcut": "shortcut", "head": "linear"}, "skl": {"shortcut_bn": False}, "mixskd": {"stem_relu": False}}
        return four_stages(depth, classes, **form[family])
    depth, x, factor = name.removeprefix("resnet").partition("x")
    stem, widths = WIDTHS[x + factor]
    return ResNet(stem, widths, [(int(depth) - 2) // 6] * 3, [1, 2, 2], classes)


def layer_macs(net, side):
    """[(name, multiply-adds of one image)] of every conv and linear layer at side x side input, in execution order."""
    found, hooks = [], []

    def count(name):
        def hook(module, args, out):
            per_output = module.weight[0].numel()
            found.append((name, per_output * out[0].numel()))
        return hook

    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(count(name)))
    was_training = net.training
    net.eval()
    weight = next(net.parameters())
    with torch.no_grad():
        net(torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device))
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return found
