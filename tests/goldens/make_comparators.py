"""Goldens of the comparison methods, written by make_methods.py's `Case`: resnet8 on 8 x 8 images, formulas of chapter 7.

losses() gives {term: (weight, value)} and the outputs that the step writes. Teachers are frozen, on running statistics.
"""

import torch
from torch import nn
from torch.nn import functional as F

from common import F64, Draw, seed_of
from make_losses import ce, ce_soft, deviation_temperature, kl, one_minus_pearson, smoothed_target
from make_methods import Case, build, modules, size, teacher

import make_losses
import nets  # benches/peers/nets.py, on the path by way of common

CLASSES = 5
SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
WATCH = ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.running_var", "layer2.0.downsample.0.weight", "layer3.0.bn2.weight",
         "layer3.0.bn2.bias", "layer3.0.bn2.running_mean", "layer3.0.bn2.running_var", "fc.weight", "fc.bias")


class Run:
    """A case's student, teacher and batch."""

    def __init__(self, name, images=4, units=None, taught_by=None):
        self.name, self.draw = name, Draw(seed_of(f"methods/{name}"))
        self.student, self.taught_by = build("resnet8", CLASSES), taught_by
        self.teacher = taught_by and teacher(taught_by, CLASSES)
        self.image = size.images("image", lambda: self.draw.normal(images, 3, size.side, size.side))
        self.label = self.draw.ints(CLASSES, units or size.of(images))
        self.batch = {"image": self.image, "label": self.label}

    def taught(self):
        with torch.no_grad():
            return self.teacher(self.image)

    def outputs(self, z):
        return {"logits": z} | ({"teacher.logits": self.taught()} if self.teacher else {})

    def save(self, out, losses, settings, case=Case, parts=None, watch=WATCH, **more):
        teachers = [(self.taught_by, self.teacher)] if self.teacher else []
        made = case(self.name, settings, self.batch, "resnet8", self.student, teachers, parts, sgd=SGD, epochs=40, watch=watch, **more)
        made.run(out, losses, scripts=[__file__, make_losses.__file__])


def binary_kl(a, b):
    """KL of (a, 1 - a) and (b, 1 - b), element by element."""
    return a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()


def decoupled(t, z, label, taus, square):
    """TCKD and NCKD with `square` in the place of T² (7.3): logits over their temperatures."""
    y = F.one_hot(label.long(), z.shape[1]).bool()
    q, p = F.softmax(t / taus[0], 1), F.softmax(z / taus[1], 1)
    others = (x[~y].view(len(x), -1) for x in (q, p))
    q_hat, p_hat = (x / x.sum(1, keepdim=True) for x in others)
    nckd = (q_hat * (q_hat / p_hat).log()).sum(1)
    return (square * binary_kl(q[y], p[y])).mean(), (square * nckd).mean()


def kd(out):
    r = Run("kd", taught_by="resnet14")

    def losses():
        z = r.student(r.image)
        return {"ce": (0.3, ce(z, r.label)), "kd": (0.8, kl(r.taught(), z, 3.0))}, r.outputs(z)

    r.save(out, losses, {"name": "kd", "temperature": 3.0, "ce_weight": 0.3, "kd_weight": 0.8}, steps=2)


def dkd(out, name, epoch, factor):
    """Epochs count from 1 in the chapter: the first one has 1/20 of the weight."""
    r = Run(name, taught_by="resnet8")

    def losses():
        z = r.student(r.image)
        tckd, nckd = decoupled(r.taught(), z, r.label, (4.0, 4.0), 16.0)
        return {"ce": (1.0, ce(z, r.label)), "tckd": (1.5 * factor, tckd), "nckd": (6.0 * factor, nckd)}, r.outputs(z)

    r.save(out, losses, {"name": "dkd", "temperature": 4.0, "alpha": 1.5, "beta": 6.0, "warmup_epochs": 20}, epoch=epoch)


def tf_kd_self(out):
    r = Run("tf_kd_self", taught_by="resnet8")

    def losses():
        z = r.student(r.image)
        q = F.softmax(r.taught() / 6.0, 1)
        elements = q * (q.log() - F.log_softmax(z / 6.0, 1))
        return {"ce": (0.4, ce(z, r.label)), "kd": (0.6 * 2.0 * 36.0, elements.mean())}, r.outputs(z)

    r.save(out, losses, {"name": "tf_kd_self", "alpha": 0.6, "temperature": 6.0, "multiplier": 2.0})


def normkd(out):
    r = Run("normkd", taught_by="resnet8")

    def losses():
        z, t = r.student(r.image), r.taught()
        tau_t, tau_z = deviation_temperature(t, 1.5), deviation_temperature(z, 1.5)
        q = F.softmax(t / tau_t, 1)
        rows = tau_t[:, 0] ** 2 * (q * (q.log() - F.log_softmax(z / tau_z, 1))).sum(1)
        return {"ce": (0.1, ce(z, r.label)), "kd": (0.9, rows.mean())}, r.outputs(z)

    r.save(out, losses, {"name": "normkd", "norm": 1.5, "ce_weight": 0.1, "kd_weight": 0.9})


def normkd_dkd(out):
    """In epoch 3, from 0, of a warm-up of 10."""
    r = Run("normkd_dkd", taught_by="resnet8")

    def losses():
        z, t = r.student(r.image), r.taught()
        taus = deviation_temperature(t, 2.0), deviation_temperature(z, 2.0)
        tckd, nckd = decoupled(t, z, r.label, taus, taus[0][:, 0] ** 2)
        return {"ce": (1.0, ce(z, r.label)), "kd": (0.4, 4.0 * tckd + 5.0 * nckd)}, r.outputs(z)

    settings = {"ce_weight": 1.0, "kd_weight": 1.0, "base": "dkd", "alpha": 4.0, "beta": 5.0, "warmup_epochs": 10}
    r.save(out, losses, {"name": "normkd", "norm": 2.0} | settings, epoch=3)


def dist(out):
    r = Run("dist", taught_by="resnet8")

    def losses():
        z, t = r.student(r.image), r.taught()
        rows, columns = one_minus_pearson(z, t, 1).mean(), one_minus_pearson(z, t, 0).mean()
        return {"ce": (1.0, ce(z, r.label)), "inter": (0.7 * 1.5, rows), "intra": (0.7 * 2.0, columns)}, r.outputs(z)

    r.save(out, losses, {"name": "dist", "kd_weight": 0.7, "beta": 1.5, "gamma": 2.0})


def smoothed(out, over, on, off):
    r = Run(f"ls_{over}")

    def losses():
        z = r.student(r.image)
        return {"ce": (1.0, ce_soft(z, smoothed_target(r.label, CLASSES, on, off)))}, r.outputs(z)

    r.save(out, losses, {"name": "ce", "label_smoothing": 0.1, "smoothing_over": over})


def tf_kd_reg(out):
    r = Run("tf_kd_reg_official")

    def official():
        z = r.student(r.image)
        target = F.softmax(smoothed_target(r.label, CLASSES, 0.99, 0.01 / (CLASSES - 1)) / 2.0, 1)
        elements = target * (target.log() - F.log_softmax(z, 1))
        return {"ce": (0.8, ce(z, r.label)), "kd": (0.2 * 30.0, elements.mean())}, r.outputs(z)

    r.save(out, official, {"name": "tf_kd_reg", "alpha": 0.2, "temperature": 2.0, "multiplier": 30.0})
    lib = Run("tf_kd_reg_self_kd_lib")

    def self_kd_lib():
        z = lib.student(lib.image)
        soft = ce_soft(z / 5.0, smoothed_target(lib.label, CLASSES, 0.9, 0.1 / (CLASSES - 1)))
        return {"ce": (1.0, ce(z, lib.label)), "kd": (1 / 5.0, soft)}, lib.outputs(z)

    lib.save(out, self_kd_lib, {"name": "tf_kd_reg", "temperature": 5.0, "correct": 0.9, "variant": "self_kd_lib"})


def cs_kd(out):
    """Anchors, then partners in a forward of their own: running statistics move twice a step."""
    n = size.of(6) // 2
    r = Run("cs_kd", images=2 * n, units=n)

    def losses():
        anchor = r.student(r.image[:n])
        with torch.no_grad():
            partner = r.student(r.image[n:])
        terms = {"ce": (1.0, ce(anchor, r.label)), "kd": (2.0, kl(partner, anchor, 4.0))}
        return terms, {"logits": torch.cat([anchor, partner])}

    r.save(out, losses, {"name": "cs_kd", "temperature": 4.0, "kd_weight": 2.0}, steps=2)


def ps_kd(out, name, epoch):
    """Of 40 epochs. Epoch 0 is cross-entropy whatever the memory holds; later the second step reads what the first wrote."""
    r = Run(name)
    memory = F.softmax(2 * r.draw.normal(len(r.image), CLASSES), 1)
    r.batch |= {"index": torch.tensor(size.order([4, 0, 7, 2]), dtype=torch.int32), "memory": memory}
    alpha = 0.7 * (epoch + 1) / 40 if epoch > 0 else 0.0

    held = {"memory": memory}

    class Remembering(Case):
        def named(self):
            return super().named() | held

    def losses():
        z = r.student(r.image)
        terms = {"ce": (1 - alpha, ce(z, r.label)), "kd": (alpha, ce_soft(z, held["memory"]))}
        target = (1 - alpha) * F.one_hot(r.label.long(), CLASSES).to(F64) + alpha * held["memory"]
        assert torch.allclose(sum(w * v for w, v in terms.values()), ce_soft(z, target), rtol=1e-13)
        held["memory"] = F.softmax(z, 1).detach()
        return terms, r.outputs(z)

    r.save(out, losses, {"name": "ps_kd", "alpha": 0.7}, Remembering, watch=(*WATCH, "memory"), epoch=epoch, steps=2)


def dlb(out, name, previous):
    """This batch first, then the last one by itself; the stored logits carry no gradient."""
    r = Run(name)
    if previous:
        image = size.images("previous.image", lambda: r.draw.normal(previous, 3, size.side, size.side))
        r.batch |= {"previous.image": image, "previous.label": r.draw.ints(CLASSES, previous),
                    "previous.logits": 2 * r.draw.normal(previous, CLASSES)}

    held = {"previous.logits": r.batch["previous.logits"].clone()} if previous else {}

    class Rolling(Case):
        def named(self):
            return super().named() | held

    def losses():
        now = r.student(r.image)
        outputs = {"logits": now, "after.previous.logits": now.detach()}
        if not previous:
            return {"ce": (1.0, ce(now, r.label))}, outputs
        again = r.student(r.batch["previous.image"])
        both = ce(torch.cat([now, again]), torch.cat([r.label, r.batch["previous.label"]]))
        kd = kl(held["previous.logits"], again, 3.0)
        if previous == len(now):  # the next step's previous batch has as many rows
            held["previous.logits"] = now.detach()
        return {"ce": (1.0, both), "kd": (1.5, kd)}, outputs | {"logits.previous": again}

    r.save(out, losses, {"name": "dlb", "temperature": 3.0, "alpha": 1.5}, Rolling, ten=previous in (0, 4))


def bake(out, name, anchors, extra, omega):
    n = anchors * (extra + 1)
    r = Run(name, images=n, units=anchors)
    label = torch.cat([r.label, r.label.repeat_interleave(extra)])  # anchors, then each anchor's partners together

    def losses():
        taps = []
        z = r.student(r.image, taps)
        with torch.no_grad():
            f = F.normalize(taps[-1], dim=1)
            w = F.softmax(f @ f.T - 1e9 * torch.eye(n, dtype=F64), 1)
            q = (1 - omega) * torch.linalg.solve(torch.eye(n, dtype=F64) - omega * w, F.softmax(z / 4.0, 1))
        rows = (q * (q.log() - F.log_softmax(z / 4.0, 1))).sum(1)
        return {"ce": (1.0, ce(z, label)), "kd": (1.25 * 16.0, rows.mean())}, {"logits": z, "targets": q}

    r.save(out, losses, {"name": "bake", "temperature": 4.0, "kd_weight": 1.25, "omega": omega, "extra_images": extra})


def byot(out):
    """Head 1 on the stage before the last, head 2 on the one before, blocks of one; the deepest teaches."""
    r = Run("byot", images=3)

    def stage(cin, cout):
        return nn.Sequential(nets.Block(cin, cout, cout, 2, False, 1, "downsample", True))

    parts = modules(layer3_head1=stage(32, 64), fc_head1=nn.Linear(64, CLASSES), layer2_head2=stage(16, 32), layer3_head2=stage(32, 64),
                    fc_head2=nn.Linear(64, CLASSES))

    def losses():
        taps = []
        z = r.student(r.image, taps)
        last = taps[-2]
        maps = [parts["layer3_head1"](taps[2]), parts["layer3_head2"](parts["layer2_head2"](taps[1]))]
        heads = [parts[f"fc_head{i + 1}"](f.mean((2, 3))) for i, f in enumerate(maps)]
        cross = ce(z, r.label) + sum(ce(h, r.label) for h in heads)
        taught = sum(kl(z.detach(), h, 4.0) for h in heads)
        hint = sum(F.mse_loss(f, last.detach()) for f in maps)
        return {"ce": (1.0, cross), "kd": (0.8, taught), "hint": (0.05, hint)}, r.outputs(z)

    own = ("method.fc_head1.weight", "method.fc_head2.bias", "method.layer2_head2.0.downsample.0.weight", "method.layer3_head1.0.bn2.weight",
           "method.layer3_head2.0.bn1.running_var")
    r.save(out, losses, {"name": "byot", "temperature": 4.0, "kd_weight": 0.8, "hint_weight": 0.05, "blocks": 1}, parts=parts,
           watch=(*WATCH, *own))


def mixed_images(out):
    """λ 0.3; and a box of rows 1 to 4, columns 5 to 7: 12 pixels come from the other image."""
    other, (top, left, bottom, right) = size.order([2, 0, 1, 3]), (1, 5, 5, 8)
    for name, lam in (("mixup", 0.3), ("cutmix", 1 - 12 / size.side**2)):
        r = Run(name)
        r.batch |= {"draw.permutation": torch.tensor(other, dtype=torch.int32), "draw.lambda": torch.tensor(lam, dtype=F64)}
        if name == "mixup":
            x = lam * r.image + (1 - lam) * r.image[other]
        else:
            r.batch["draw.box"] = torch.tensor([top, left, bottom, right], dtype=torch.int32)
            x = r.image.clone()
            x[:, :, top:bottom, left:right] = r.image[other][:, :, top:bottom, left:right]

        def losses():
            z = r.student(x)
            return {"ce": (1.0, lam * ce(z, r.label) + (1 - lam) * ce(z, r.label[other]))}, r.outputs(z)

        r.save(out, losses, {"name": name})


def painted_images(out):
    boxes = [[0, 0, 3, 4], [5, 2, 8, 8], [0, 0, 0, 0], [2, 7, 6, 8]] * (size.of(4) // 4)
    for settings, fill in (({"name": "cutout", "side": 4}, (0.0, 0.0, 0.0)), ({"name": "erasing"}, (0.5071, 0.4867, 0.4408))):
        r = Run(settings["name"])
        r.batch["draw.box"] = torch.tensor(boxes, dtype=torch.int32)
        x = r.image.clone()
        for image, (y0, x0, y1, x1) in zip(x, boxes):
            image[:, y0:y1, x0:x1] = torch.tensor(fill, dtype=F64).view(3, 1, 1)

        def losses():
            z = r.student(x)
            return {"ce": (1.0, ce(z, r.label))}, r.outputs(z)

        r.save(out, losses, settings)


def main(out):
    kd(out)
    dkd(out, "dkd_warmup", 0, 1 / 20)
    dkd(out, "dkd", 30, 1.0)
    tf_kd_self(out)
    normkd(out)
    normkd_dkd(out)
    dist(out)
    smoothed(out, "others", 0.9, 0.1 / (CLASSES - 1))
    smoothed(out, "all", 0.9 + 0.1 / CLASSES, 0.1 / CLASSES)
    tf_kd_reg(out)
    cs_kd(out)
    ps_kd(out, "ps_kd_first", 0)
    ps_kd(out, "ps_kd", 5)
    dlb(out, "dlb_first", 0)
    dlb(out, "dlb", 4)
    dlb(out, "dlb_uneven", 2)
    bake(out, "bake_m1", 3, 1, 0.9)
    bake(out, "bake_m3", 2, 3, 0.5)
    byot(out)
    mixed_images(out)
    painted_images(out)
