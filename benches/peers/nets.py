"""Residual networks in PyTorch, written from their published layer tables; parameter names and key order are the published ones.

Used twice: as the speed peer (step.py) and as the reference of the network goldens (tests/goldens/make_nets.py).
build(name, classes) -> Module; module(x, taps) -> logits. x: [N, 3, H, W]. If `taps` is a list, the maps f0, f1, ... and at last
the pooled vector are appended to it. Pools are global, so any input size works.

Sources: He et al. 2015 (resnet{6n+2}, ImageNet nets), Zagoruyko and Komodakis 2016 (wrn_d_w).
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv(cin, cout, k, stride=1, groups=1):
    return nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False)


class Block(nn.Module):
    """Post-activation residual block: basic (two 3x3) or bottleneck (1x1, strided 3x3, 1x1)."""

    def __init__(self, cin, inner, cout, stride, bottleneck, groups, shortcut):
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
            setattr(self, shortcut, nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout)))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (getattr(self, self.shortcut_name)(x) if self.shortcut_name else x))


class ResNet(nn.Module):
    """stem conv, BN, ReLU [, max pool]; stages layer1..; global average; linear head."""

    def __init__(self, stem, widths, blocks, strides, classes, bottleneck=False, groups=1, base=64, imagenet=False,
                 shortcut="downsample", head="fc"):
        super().__init__()
        self.imagenet, self.head, self.stages = imagenet, head, len(widths)
        self.conv1 = conv(3, stem, 7, 2) if imagenet else conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        cin = stem
        for i, (width, n, stride) in enumerate(zip(widths, blocks, strides)):
            inner, cout = (width * base // 64 * groups, 4 * width) if bottleneck else (width, width)
            stage = []
            for b in range(n):
                stage.append(Block(cin, inner, cout, stride if b == 0 else 1, bottleneck, groups, shortcut))
                cin = cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        setattr(self, head, nn.Linear(cin, classes))

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        x = F.relu(self.bn1(self.conv1(x)))
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


DEEP = {18: ([2, 2, 2, 2], False), 34: ([3, 4, 6, 3], False), 50: ([3, 4, 6, 3], True), 101: ([3, 4, 23, 3], True)}
WIDTHS = {"": (16, [16, 32, 64]), "x2": (16, [32, 64, 128]), "x4": (32, [64, 128, 256])}


def build(name, classes):
    """resnetN, resnetNx2, resnetNx4 (CIFAR, N = 6n+2), wrn_d_w, cifar_resnetN, imagenet_{resnetN,wide_resnet50_2,resnext50_32x4d}."""
    if name.startswith("wrn_"):
        return WideResNet(*map(int, name[4:].split("_")), classes)
    family, _, rest = name.partition("_")
    if family == "cifar":
        blocks, bottleneck = DEEP[int(rest.removeprefix("resnet"))]
        return ResNet(64, [64, 128, 256, 512], blocks, [1, 2, 2, 2], classes, bottleneck, shortcut="shortcut", head="linear")
    if family == "imagenet":
        groups, base = {"wide_resnet50_2": (1, 128), "resnext50_32x4d": (32, 4)}.get(rest, (1, 64))
        blocks, bottleneck = DEEP[50 if "50" in rest else int(rest.removeprefix("resnet"))]
        return ResNet(64, [64, 128, 256, 512], blocks, [1, 2, 2, 2], classes, bottleneck, groups, base, imagenet=True)
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
