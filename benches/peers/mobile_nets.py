"""MobileNets and ShuffleNets in PyTorch, in the published forms of distillation benches and torchvision; see nets.py.

Sources: Howard et al. 2017 (MobileNetV1), Sandler et al. 2018 (V2), Zhang et al. 2017 (ShuffleNet), Ma et al. 2018 (V2).
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv(cin, cout, k, stride=1, groups=1):
    return nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False)


def cbr(cin, cout, k, stride=1, groups=1, act=nn.ReLU, pad=None, bias=False):
    pad = k // 2 if pad is None else pad
    return [nn.Conv2d(cin, cout, k, stride, pad, groups=groups, bias=bias), nn.BatchNorm2d(cout), act()]


class MobileNetV1(nn.Module):
    """CBR of stride 2, thirteen depthwise-separable units, global average, linear. The stem is no tap."""

    def __init__(self, classes):
        super().__init__()
        units, cin = [nn.Sequential(*cbr(3, 32, 3, 2))], 32
        for cout, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)):
            units.append(nn.Sequential(*cbr(cin, cin, 3, stride, cin), *cbr(cin, cout, 1)))
            cin = cout
        self.model = nn.Sequential(*units)
        self.fc = nn.Linear(cin, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        for i, unit in enumerate(self.model):
            x = unit(x)
            if i in (3, 5, 11, 13):
                taps.append(x)
        taps.append(x.mean((2, 3)))
        return self.fc(taps[-1])


class Inverted(nn.Module):
    """Inverted residual whose layers lie in the sequence `inside`; the input is added where sizes agree."""

    def __init__(self, inside, layers, adds):
        super().__init__()
        setattr(self, inside, nn.Sequential(*layers))
        self.inside, self.adds = inside, adds

    def forward(self, x):
        y = getattr(self, self.inside)(x)
        return x + y if self.adds else y


MOBILE = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))  # expansion, width, blocks


class MobileNetV2(nn.Module):
    """The distillation benches' form for CIFAR: plain ReLU, every block has its expansion, stage 2 keeps its size."""

    head = "classifier.0"

    def __init__(self, factor, classes):
        super().__init__()
        cin = int(32 * factor)
        self.conv1 = nn.Sequential(*cbr(3, cin, 3, 2))
        self.blocks = nn.Sequential()
        for (t, c, n), s in zip(MOBILE, (1, 1, 2, 2, 1, 2, 1)):
            stage, cout = nn.Sequential(), int(c * factor)
            for b in range(n):
                stride = s if b == 0 else 1
                layers = cbr(cin, t * cin, 1) + cbr(t * cin, t * cin, 3, stride, t * cin) + cbr(t * cin, cout, 1)[:2]
                stage.append(Inverted("conv", layers, stride == 1 and cin == cout))
                cin = cout
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(*cbr(cin, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        x = self.conv1(x)
        taps.append(x)
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in (1, 2, 4, 6):
                taps.append(x)
        taps.append(self.conv2(x).mean((2, 3)))
        return self.classifier(taps[-1])


class MobileNetV2ImageNet(nn.Module):
    """torchvision's mobilenet_v2, without its dropout of 0.2 before the classifier."""

    head = "classifier.1"

    def __init__(self, classes):
        super().__init__()
        six, cin = nn.ReLU6, 32
        self.features = nn.Sequential(nn.Sequential(*cbr(3, cin, 3, 2, act=six)))
        for (t, c, n), s in zip(MOBILE, (1, 2, 2, 2, 1, 2, 1)):
            for b in range(n):
                stride, inner = s if b == 0 else 1, t * cin
                layers = [nn.Sequential(*cbr(cin, inner, 1, act=six))] if t > 1 else []
                layers += [nn.Sequential(*cbr(inner, inner, 3, stride, inner, six)), *cbr(inner, c, 1)[:2]]
                self.features.append(Inverted("conv", layers, stride == 1 and cin == c))
                cin = c
        self.features.append(nn.Sequential(*cbr(cin, 1280, 1, act=six)))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, classes))

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in (0, 3, 6, 13, 17):
                taps.append(x)
        taps.append(x.mean((2, 3)))
        return self.classifier(taps[-1])


class MobileNetV2Tiny(nn.Module):
    """Tiny-ImageNet form: biases everywhere, ReLU6, a 1x1 stem with padding 1, a 1x1 convolution as classifier."""

    head = "conv2"

    def __init__(self, classes):
        super().__init__()
        kind = {"act": nn.ReLU6, "bias": True}
        self.pre = nn.Sequential(*cbr(3, 32, 1, pad=1, **kind))
        cin = 32
        for i, ((t, c, n), s) in enumerate(zip(MOBILE, (1, 2, 2, 2, 1, 1, 1))):
            blocks = []
            for b in range(n):
                stride, inner = s if b == 0 else 1, t * cin
                layers = cbr(cin, inner, 1, **kind) + cbr(inner, inner, 3, stride, inner, **kind) + cbr(inner, c, 1, **kind)[:2]
                blocks.append(Inverted("residual", layers, stride == 1 and cin == c))
                cin = c
            setattr(self, f"stage{i + 1}", nn.Sequential(*blocks) if n > 1 else blocks[0])
        self.conv1 = nn.Sequential(*cbr(cin, 1280, 1, **kind))
        self.conv2 = nn.Conv2d(1280, classes, 1)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        x = self.pre(x)
        taps.append(x)
        for i in range(1, 8):
            x = getattr(self, f"stage{i}")(x)
            if i in (2, 3, 4):
                taps.append(x)
        x = self.conv1(x)
        taps += [x, x.mean((2, 3))]
        return self.conv2(F.adaptive_avg_pool2d(x, 1)).flatten(1)


def shuffle(x, groups):
    """Channel i of the result is channel (i mod groups) (C / groups) + i div groups."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnit1(nn.Module):
    def __init__(self, cin, cout, stride, groups):
        super().__init__()
        self.stride, self.groups = stride, groups
        out = cout - cin if stride == 2 else cout
        mid = out // 4
        self.conv1, self.bn1 = conv(cin, mid, 1, groups=groups), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = conv(mid, mid, 3, stride, mid), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = conv(mid, out, 1, groups=3), nn.BatchNorm2d(out)

    def forward(self, x):
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else y + x)


class ShuffleV1(nn.Module):
    """1x1 stem, three stages of 4, 8, 4 units in three groups, global average, linear."""

    head = "linear"

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        cin = 24
        for s, (units, cout) in enumerate(((4, 240), (8, 480), (4, 960))):
            stage = []
            for i in range(units):
                stage.append(ShuffleUnit1(cin, cout, 2 if i == 0 else 1, 1 if cin == 24 else 3))
                cin = cout
            setattr(self, f"layer{s + 1}", nn.Sequential(*stage))
        self.linear = nn.Linear(cin, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        taps.append(F.relu(self.bn1(self.conv1(x))))
        for s in (1, 2, 3):
            taps.append(getattr(self, f"layer{s}")(taps[-1]))
        taps.append(taps[-1].mean((2, 3)))
        return self.linear(taps[-1])


class ShuffleDown(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        h = cout // 2
        shapes = ((cin, cin, 3, 2, cin), (cin, h, 1, 1, 1), (cin, h, 1, 1, 1), (h, h, 3, 2, h), (h, h, 1, 1, 1))
        for i, (a, b, k, s, g) in enumerate(shapes):
            setattr(self, f"conv{i + 1}", conv(a, b, k, s, g))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(b))

    def forward(self, x):
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return shuffle(torch.cat([left, F.relu(self.bn5(self.conv5(right)))], 1), 2)


class ShuffleBasic(nn.Module):
    def __init__(self, c):
        super().__init__()
        h = c // 2
        self.conv1, self.bn1 = conv(h, h, 1), nn.BatchNorm2d(h)
        self.conv2, self.bn2 = conv(h, h, 3, 1, h), nn.BatchNorm2d(h)
        self.conv3, self.bn3 = conv(h, h, 1), nn.BatchNorm2d(h)

    def forward(self, x):
        passed, y = x.chunk(2, 1)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return shuffle(torch.cat([passed, F.relu(self.bn3(self.conv3(y)))], 1), 2)


class ShuffleV2(nn.Module):
    """CIFAR form: 1x1 stem, stages of one Down and 3, 7, 3 Basic units, 1x1 to 1024, global average, linear."""

    head = "linear"

    def __init__(self, widths, classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        cin = 24
        for s, (c, n) in enumerate(zip(widths, (3, 7, 3))):
            setattr(self, f"layer{s + 1}", nn.Sequential(ShuffleDown(cin, c), *(ShuffleBasic(c) for _ in range(n))))
            cin = c
        self.conv2, self.bn2 = conv(cin, 1024, 1), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        taps.append(F.relu(self.bn1(self.conv1(x))))
        for s in (1, 2, 3):
            taps.append(getattr(self, f"layer{s}")(taps[-1]))
        taps.append(F.relu(self.bn2(self.conv2(taps[-1]))).mean((2, 3)))
        return self.linear(taps[-1])


class ShuffleUnit2(nn.Module):
    """Unit under torchvision's names: branch1 of Down units, branch2 of all."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        h = cout // 2
        self.split = stride == 1
        if not self.split:
            self.branch1 = nn.Sequential(*cbr(cin, cin, 3, stride, cin)[:2], *cbr(cin, h, 1))
        self.branch2 = nn.Sequential(*cbr(h if self.split else cin, h, 1), *cbr(h, h, 3, stride, h)[:2], *cbr(h, h, 1))

    def forward(self, x):
        left, right = x.chunk(2, 1) if self.split else (self.branch1(x), x)
        return shuffle(torch.cat([left, self.branch2(right)], 1), 2)


class ShuffleV2ImageNet(nn.Module):
    """torchvision's shufflenet_v2_x1_0. The stem's tap is before the max pool."""

    def __init__(self, classes):
        super().__init__()
        self.conv1, cin = nn.Sequential(*cbr(3, 24, 3, 2)), 24
        for s, (n, c) in enumerate(((4, 116), (8, 232), (4, 464))):
            units = [ShuffleUnit2(cin if i == 0 else c, c, 2 if i == 0 else 1) for i in range(n)]
            setattr(self, f"stage{s + 2}", nn.Sequential(*units))
            cin = c
        self.conv5 = nn.Sequential(*cbr(cin, 1024, 1))
        self.fc = nn.Linear(1024, classes)

    def forward(self, x, taps=None):
        taps = [] if taps is None else taps
        taps.append(self.conv1(x))
        x = F.max_pool2d(taps[-1], 3, 2, 1)
        for s in (2, 3, 4):
            x = getattr(self, f"stage{s}")(x)
            taps.append(x)
        taps.append(self.conv5(x).mean((2, 3)))
        return self.fc(taps[-1])
