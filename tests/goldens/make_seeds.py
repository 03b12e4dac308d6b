"""Goldens of the five seed methods (and SimKD, which ATSC contains): patch swap, MixSKD, ATSC, CRLD, PLL. 5 classes, 8 x 8 images."""

import torch
from torch import nn
from torch.nn import functional as F

from common import F64, Draw, seed_of, set_weights
from make_losses import ce, ce_soft, deviation_temperature, dkd_rows, gce_pair, ips, kl, kl_rows
from make_methods import Case, Phase, build, modules, prefix_of, size, teacher

import make_losses
import nets

CLASSES = 5
RESNET = ["conv1.weight", "bn1.running_mean", "bn1.running_var", "layer2.0.downsample.0.weight", "layer3.0.bn2.weight",
          "layer3.0.bn2.bias", "layer3.0.bn2.running_mean", "layer3.0.bn2.running_var", "fc.weight", "fc.bias"]
SCRIPTS = [__file__, make_losses.__file__]


def batch_of(name, rows=4, labels=None, views=("",)):
    """Normalised images per view and a label per unit."""
    d = Draw(seed_of(name))
    names = ["image" + (v and f".{v}") for v in views]
    images = {k: size.images(k, lambda: d.normal(rows, 3, size.side, size.side)) for k in names}
    return images | {"label": d.ints(CLASSES, labels or size.of(rows))}, d


def large_batch_of(name, rows=4):
    """Smooth images of 16 x 16: features are deeper than elsewhere, and less of them is rounding."""
    d = Draw(seed_of(name))

    def smooth():
        coarse = F.interpolate(d.normal(rows, 3, 4, 4), scale_factor=4, mode="bilinear")
        return coarse + 0.3 * d.normal(rows, 3, 16, 16)

    return {"image": size.images("image", smooth), "label": d.ints(CLASSES, size.of(rows))}


def taps_of(net, image):
    """(maps of stem and stages, logits)."""
    taps = []
    logits = net(image, taps)
    return taps[:-1], logits


def top1(logits, label):
    return {"monitor.top1": (logits.argmax(1) == label).to(F64).mean()}


# Patch swap. Rows are [a_1..a_n, b_1..b_n].

def exchange(image, mask, m):
    """Cell (r // m) columns + c // m of a pair changes places where its bit is set; the last row and column may be narrower."""
    a, b = image.chunk(2)
    side = torch.arange(size.side) // m
    pick = mask.bool()[:, side.view(-1, 1) * (-(-size.side // m)) + side].unsqueeze(1)
    return torch.cat([torch.where(pick, b, a), torch.where(pick, a, b)])


def patch_swap(out, name, m=2, epoch=0, ramp=None, **settings):
    n, cells = size.of(6) // 2, (-(-size.side // m)) ** 2
    batch, d = batch_of(name, 2 * n, n)
    batch["draw.swap_mask"] = d.ints(2, n, cells, dtype=torch.uint8)
    net = build("resnet8", CLASSES)
    label, alpha = batch["label"], settings.get("alpha", 1.0)
    if ramp:
        settings["alpha_rampup_epochs"] = ramp
        alpha *= min((epoch + 1) / ramp, 1)

    def losses():
        fed = exchange(batch["image"], batch["draw.swap_mask"], m)
        if settings.get("feed_originals"):
            fed = torch.cat([fed, batch["image"]])
        if settings.get("bn_groups") == "split":  # each run by itself, in order
            logits = torch.cat([net(run) for run in fed.split(n)])
        else:
            logits = net(fed)
        runs = [ce(z, label) for z in logits.split(n)]
        if settings.get("ce_on") == "anchor":
            runs = runs[::2]
        cross = sum(runs) / (1 if settings.get("ce_reduce") == "sum" else len(runs))
        a, b = logits[:n], logits[n:2 * n]
        _, distil = ips(a, b, label, settings.get("temperature", 4.0), alpha, settings.get("kl", "two_way_sg"))
        return {"ce": (1, cross), "kd": (1, distil)}, {"logits": logits[:2 * n]} | top1(logits[:2 * n], label.repeat(2))

    method = {"name": "ips", "m": m} | settings
    Case(name, method, batch, "resnet8", net, watch=RESNET, steps=2, epoch=epoch).run(out, losses, scripts=SCRIPTS)


def patch_swaps(out):
    patch_swap(out, "ips_anchor", ce_on="anchor", kl="one_way_b_to_a", bn_groups="split")
    patch_swap(out, "ips_anchor_joint", ce_on="anchor", kl="two_way_full", temperature=2.0, alpha=0.5)
    patch_swap(out, "ips_originals", feed_originals=True)
    patch_swap(out, "ips_originals_split", feed_originals=True, bn_groups="split", ce_reduce="sum", kl="by_confidence")
    patch_swap(out, "ips_originals_anchor", feed_originals=True, ce_on="anchor", bn_groups="split")
    patch_swap(out, "ips_ragged", m=3, cell_count="uniform", alpha=0.8, temperature=2.0, ramp=4.0, epoch=1)


# MixSKD

class Reverse(torch.autograd.Function):
    """Identity whose gradient changes its sign."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


WIDTHS = [16, 32, 64]


def stage(s):
    """A copy of stage `s` of resnet8: one basic block with stride 2."""
    cin, cout = WIDTHS[s - 2], WIDTHS[s - 1]
    return nn.Sequential(nets.Block(cin, cout, cout, 2, False, 1, "downsample", True))


def mixskd_modules():
    """Branches on f1 and f2 with heads; the self-teacher; a discriminator for each of the three features."""
    branches, own = nn.Module(), nn.Module()
    branches.block_extractor1, branches.block_extractor2 = nn.Sequential(stage(2), stage(3)), nn.Sequential(stage(3))
    branches.fc1, branches.fc2 = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)
    own.conv, own.fc = nn.Conv2d(3 * 64, 64, 1, bias=False), nn.Linear(64, CLASSES)
    told = {f"discriminator{s}": nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2)) for s in (1, 2, 3)}
    return modules(auxiliary_classifier=branches, final_aux_classifier=own, **told)


MIXSKD_WATCH = [k for k in RESNET if k != "layer2.0.downsample.0.weight"] + [
    "method.auxiliary_classifier.fc*", "method.auxiliary_classifier.block_extractor1.0.0.downsample.0.weight",
    "method.auxiliary_classifier.block_extractor1.1.0.bn2.*", "method.auxiliary_classifier.block_extractor2.0.0.bn1.*",
    "method.final_aux_classifier.fc.*", "method.discriminator1.0.bias", "method.discriminator1.2.bias", "method.discriminator3.2.*"]


def mixskd(out, name, lam=0.3, permutation=(2, 0, 1, 3), steps=2, **settings):
    """Steps 1 to 6 and all terms of the chapter, the self-teacher on whole maps."""
    batch, _ = batch_of(name)
    pi = torch.tensor(size.order(permutation))
    n = len(pi)
    batch |= {"draw.permutation": pi.to(torch.int32), "draw.lambda": torch.tensor(lam, dtype=F64)}
    net, parts = build("resnet8", CLASSES), mixskd_modules()
    discriminators = settings.get("discriminators", "frozen")
    told = [parts[f"discriminator{s}"] for s in (1, 2, 3)]
    for module in told:
        module.requires_grad_(discriminators != "frozen")
    t, y = settings.get("temperature", 3.0), batch["label"]

    def mix(u):
        return lam * u[:n] + (1 - lam) * u[pi]

    def ce_mix(z):
        return lam * ce(z, y) + (1 - lam) * ce(z, y[pi])

    def losses():
        x = torch.cat([batch["image"], mix(batch["image"])])
        maps, own = taps_of(net, x)
        aux, self_teacher = parts["auxiliary_classifier"], parts["final_aux_classifier"]
        features = [aux.block_extractor1(maps[1]), aux.block_extractor2(maps[2]), maps[3]]
        logits = [aux.fc1(features[0].mean((2, 3))), aux.fc2(features[1].mean((2, 3))), own]
        a, m = [mix(f) for f in features], [f[n:] for f in features]
        u, v = [mix(z) for z in logits], [z[n:] for z in logits]

        def h(maps):
            return self_teacher.fc(self_teacher.conv(torch.cat(maps, 1)).mean((2, 3)))

        e, e_mixed = h(a), h(m)
        turned = Reverse.apply if discriminators == "reversed" else lambda x: x
        side = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(n, 1), torch.tensor([[0.0, 1.0]]).repeat(n, 1)]).to(F64)
        said = [d(turned(torch.cat(pair)).mean((2, 3))) for d, pair in zip(told, zip(a, m))]
        terms = {
            "cls": sum(ce(z[:n], y) for z in logits),
            "mixcls": sum(ce_mix(z) for z in v),
            "stcls": ce_mix(e) + ce_mix(e_mixed),
            "kl_st": kl(e_mixed.detach(), u[2], t) + kl(e.detach(), v[2], t),
            "kl_pair": sum(kl(v[s].detach(), u[s], t) + kl(u[s].detach(), v[s], t) for s in (0, 1)),
            "fea": sum(F.mse_loss(p, q) for p, q in zip(a, m)),
            "gan": sum(F.binary_cross_entropy_with_logits(o, side) for o in said),
        }
        if settings.get("loss") == "a":
            del terms["mixcls"], terms["stcls"]
        return {k: (settings.get(f"{k}_weight", 1.0), v) for k, v in terms.items()}, {"logits": own} | top1(own[:n], y)

    case = Case(name, {"name": "mixskd"} | settings, batch, "resnet8", net, parts=parts, watch=MIXSKD_WATCH, steps=steps)
    case.run(out, losses, scripts=SCRIPTS)


def mixskds(out):
    mixskd(out, "mixskd_b")
    mixskd(out, "mixskd_a", loss="a")
    mixskd(out, "mixskd_trained", discriminators="trained")
    mixskd(out, "mixskd_reversed", discriminators="reversed")
    mixskd(out, "mixskd_lambda_0", lam=0.0, steps=1)
    mixskd(out, "mixskd_lambda_1", lam=1.0, steps=1, loss="a")
    mixskd(out, "mixskd_weights", lam=0.8, permutation=(1, 2, 3, 0), temperature=2.0, cls_weight=0.5, mixcls_weight=0.3, stcls_weight=2.0,
           kl_st_weight=1.5, kl_pair_weight=0.7, fea_weight=3.0, gan_weight=0.2, discriminators="reversed")


# ATSC and SimKD

class Projector(nn.Module):
    """1x1, 3x3, 1x1, each with batch norm and ReLU."""

    def __init__(self, cin, cout, factor):
        super().__init__()
        middle = cout // factor
        self.conv1, self.bn1 = nn.Conv2d(cin, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, cout, 1, bias=False), nn.BatchNorm2d(cout)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))


def numbered(name, i):
    return name if i == 0 else f"{name}{i + 1}"


def compared(projector, mine, theirs):
    """Projected student map and target at the smaller of the two heights."""
    s, t = mine.shape[2], theirs.shape[2]
    if s > t:
        mine = F.adaptive_avg_pool2d(mine, (t, t))
    elif s < t:
        theirs = F.adaptive_avg_pool2d(theirs, (s, s))
    return projector(mine), theirs


def head(net):
    return getattr(net, getattr(net, "head", "fc"))


def head_name(net):
    return getattr(net, "head", "fc")


ATSC_STUDENT = {"resnet8": ["conv1.weight", "bn1.running_mean", "layer3.0.bn2.weight", "fc.weight", "fc.bias"],
                "vgg8": ["block0.0.weight", "block0.0.bias", "block4.1.running_var", "block4.1.weight", "classifier.bias"]}
ATSC_TEACHER = {"resnet8": ["conv1.weight", "bn1.running_mean", "bn1.running_var", "layer3.0.bn2.weight", "layer3.0.bn2.bias", "fc.weight",
                            "fc.bias"],
                "vgg8": ["block0.0.bias", "block0.1.weight", "block0.1.running_var", "block4.1.weight", "block4.1.running_mean", "classifier.bias"]}
PROJECTOR = ["bn1.weight", "bn1.running_mean", "bn2.bias", "bn3.weight", "bn3.running_var"]


AMPLIFIED = {"f32": 400}  # VGG's sums of up to 4608 products cancel


def atsc_watch(student, teachers):
    kind = {"resnet14": "resnet8", "resnet14x2": "resnet8"}
    watch = list(ATSC_STUDENT[student])
    for i, name in enumerate(teachers):
        watch += [prefix_of(i + 1) + k for k in ATSC_TEACHER[kind.get(name, name)]]
        watch += [f"method.{numbered('projector', i)}.{k}" for k in PROJECTOR]
    return watch


def channels(net, image):
    with torch.no_grad():
        return taps_of(net.eval(), image)[0][-1].shape[1]


def atsc(out, name, student="resnet8", teachers=("resnet14",), sgd=None, steps=3, **settings):
    """The main step, then for each teacher a second forward and a step of its classifier's bias."""
    batch = large_batch_of(name)
    x, y = batch["image"], batch["label"]
    frozen = settings.get("teacher") == "frozen"
    net = build(student, CLASSES)
    trained = [teacher(t, CLASSES, i + 1, training=not frozen) for i, t in enumerate(teachers)]
    mine = channels(build(student, CLASSES), x)
    theirs = [channels(build(t, CLASSES), x) for t in teachers]
    factor = settings.get("projector_factor", 2)
    parts = modules(**{numbered("projector", i): Projector(mine, c, factor) for i, c in enumerate(theirs)})
    start = [{k: v.detach().clone() for k, v in t.named_parameters()} for t in trained]
    mse, w = settings.get("mse_weight", 1.0), settings.get("anchor_weight", 1.0)
    c, d, temperature = settings.get("ce_weight", 0.0), settings.get("kd_weight", 0.0), settings.get("temperature", 4.0)
    anchor_bn = settings.get("anchor_bn", True)

    def anchored(t, k, v):
        return v.dim() > 1 or (anchor_bn and k != f"{head_name(t)}.bias")

    def main():
        maps, own = taps_of(net, x)
        terms, shared, outputs = {}, [], {}
        for i, t in enumerate(trained):
            their_maps, their_logits = taps_of(t, x)
            a, g = compared(parts[numbered("projector", i)], maps[-1], their_maps[-1])
            terms[numbered("mse", i)] = (mse / len(trained), F.mse_loss(a, g))
            if not frozen:
                r = sum(((v - start[i][k]) ** 2).sum() for k, v in t.named_parameters() if anchored(t, k, v))
                terms[numbered("anchor", i)] = (w, r)
            terms[numbered("kd", i)] = (d, kl(their_logits, own, temperature))
            shared.append(F.linear(a.mean((2, 3)), head(t).weight, head(t).bias))
            square = (their_maps[-1] ** 2).mean()
            outputs |= {numbered("teacher.logits", i): their_logits, numbered("monitor.feature_rms", i): square.sqrt(),
                        numbered("monitor.relative_mse", i): F.mse_loss(a, g) / square,
                        numbered("monitor.teacher_top1", i): top1(their_logits, y)["monitor.top1"]}
        terms["ce"] = (c, ce(own, y))
        together = sum(shared) / len(shared)
        return terms, outputs | {"logits": together} | top1(together, y)

    def bias(i):
        return lambda: ({numbered("bias", i): (1, ce(trained[i](x), y))}, {})

    case = Case(name, {"name": "atsc"} | settings, batch, student, net, list(zip(teachers, trained)), parts,
                sgd={"lr": 0.002} | (sgd or {}), steps=steps, amplified=AMPLIFIED if "vgg8" in (student, *teachers) else {},
                watch=atsc_watch(student, teachers))
    norms = [p for t in trained for m in t.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    groups = [p for module in (net, parts, *trained) for p in module.parameters() if p.requires_grad]
    if settings.get("teacher_bn_decay") is False:
        plain = [p for p in groups if not any(p is q for q in norms)]
        groups = [{"params": plain}, {"params": norms, "weight_decay": 0.0}]
    phases = [Phase(main, groups)]
    if not frozen and settings.get("bias_step", True):
        phases += [Phase(bias(i), [head(t).bias], numbered("bias", i)) for i, t in enumerate(trained)]
    case.run(out, phases=phases, scripts=SCRIPTS)


def atscs(out):
    atsc(out, "atsc")
    atsc(out, "atsc_ref", anchor_bn=False)
    atsc(out, "atsc_no_bias_step", bias_step=False)
    atsc(out, "atsc_bn_decay_off", teacher_bn_decay=False, anchor_bn=False, sgd={"weight_decay": 5e-3})
    atsc(out, "atsc_ce_kd", ce_weight=0.5, kd_weight=0.3, mse_weight=2.0, anchor_weight=0.7, temperature=3.0,
         sgd={"nesterov": True})
    atsc(out, "atsc_two_teachers", teachers=("resnet14", "resnet8"))
    atsc(out, "atsc_small_student_map", student="vgg8", anchor_weight=0.5, sgd={"lr": 0.0005})
    atsc(out, "atsc_small_teacher_map", teachers=("vgg8",), projector_factor=8, steps=2, sgd={"lr": 0.0002})
    atsc(out, "atsc_frozen", teachers=("resnet14x2",), teacher="frozen", ce_weight=0.25, kd_weight=0.5)


def simkd(out, name, student="resnet8", network="resnet14x2", **settings):
    batch = large_batch_of(name)
    x, net, t = batch["image"], build(student, CLASSES), teacher(network, CLASSES)
    cin, cout = channels(build(student, CLASSES), x), channels(build(network, CLASSES), x)
    parts = modules(projector=Projector(cin, cout, settings.get("projector_factor", 2)))

    def losses():
        maps, own = taps_of(net, x)
        their_maps, their_logits = taps_of(t, x)
        a, g = compared(parts["projector"], maps[-1], their_maps[-1])
        shared = F.linear(a.mean((2, 3)), head(t).weight, head(t).bias)
        terms = {"mse": (settings.get("mse_weight", 1.0), F.mse_loss(a, g)), "ce": (0.0, ce(own, batch["label"]))}
        return terms, {"logits": shared, "teacher.logits": their_logits} | top1(shared, batch["label"])

    case = Case(name, {"name": "simkd"} | settings, batch, student, net, [(network, t)], parts, steps=2, watch=atsc_watch(student, [network]))
    case.run(out, losses, scripts=SCRIPTS)


def simkds(out):
    simkd(out, "simkd")
    simkd(out, "simkd_small_teacher_map", network="vgg8", mse_weight=0.5, projector_factor=8)


# CRLD

def rows_between(t, z, label, settings):
    """The loss of each image that stands for T² KL."""
    base, temperature = settings.get("base", "kl"), settings.get("temperature", 4.0)
    square = temperature ** 2
    if base in ("normkd", "norm_dkd"):
        tau_t, tau_z = (deviation_temperature(v, settings.get("norm", 2.0)) for v in (t, z))
        t, z, temperature, square = t / tau_t, z / tau_z, 1.0, tau_t.squeeze(1) ** 2
    if base in ("kl", "normkd"):
        return square * kl_rows(t, z, temperature)
    on, off = dkd_rows(t, z, label, temperature)
    return square * (settings.get("alpha", 1.0) * on + settings.get("beta", 8.0) * off)


def between(confidence):
    """A threshold that keeps some images and not others (of many, a sixth at least), as far as can be from every confidence."""
    found = confidence.sort().values
    found = found[len(found) // 6:len(found) - len(found) // 6]
    i = (found[1:] - found[:-1]).argmax()
    assert found[i + 1] - found[i] > 0.02
    return round(float(found[i] + found[i + 1]) / 2, 3)


def crld(out, name, epoch=0, **settings):
    batch, _ = batch_of(name, 5, views=("weak", "strong"))
    net, t, y = build("resnet8", CLASSES), teacher("resnet14", CLASSES), batch["label"]
    for key, view in (("tau_weak", "weak"), ("tau_strong", "strong")):
        settings.setdefault(key, between(torch.softmax(t(batch[f"image.{view}"]), 1).amax(1)))
    tau_w, tau_s = settings["tau_weak"], settings["tau_strong"]
    warmup = settings.get("warmup_epochs", 0.0)
    factor = min((epoch + 1) / warmup, 1) if warmup else 1

    def losses():
        tw, ts = t(batch["image.weak"]), t(batch["image.strong"])
        zw, zs = net(batch["image.weak"]), net(batch["image.strong"])  # weak first
        sure_w, sure_s = (torch.softmax(v, 1).amax(1) for v in (tw, ts))
        mw, ms = (sure_w >= tau_w).to(F64), (sure_s >= tau_s).to(F64)
        masks = [mw, mw, ms, ms] if settings.get("mask_rule", "by_term") == "by_term" else [mw, ms, mw, ms]
        pairs = [(tw, zw), (ts, zs), (tw, zs), (ts, zw)]
        ww, ss, ws, sw = ((mask * rows_between(a.detach(), b, y, settings)).mean() for mask, (a, b) in zip(masks, pairs))
        terms = {"ce": (settings.get("ce_weight", 1.0), ce(zw, y) + ce(zs, y)),
                 "within": (factor * settings.get("within_weight", 2.0), ww + ss),
                 "cross": (factor * settings.get("cross_weight", 0.5), ws + sw)}
        return terms, {"logits.weak": zw, "logits.strong": zs, "teacher.logits.weak": tw, "teacher.logits.strong": ts,
                       "monitor.kept_weak": mw.mean(), "monitor.kept_strong": ms.mean()} | top1(zw, y)

    case = Case(name, {"name": "crld"} | settings, batch, "resnet8", net, [("resnet14", t)], watch=RESNET, epoch=epoch, steps=2)
    case.run(out, losses, scripts=SCRIPTS)


def crlds(out):
    crld(out, "crld")
    crld(out, "crld_all", tau_weak=0.0, tau_strong=0.0)
    crld(out, "crld_by_label", mask_rule="by_label")
    crld(out, "crld_t1", temperature=1.0, ce_weight=2.0)
    crld(out, "crld_dkd", base="dkd", beta=2.0, warmup_epochs=4.0, epoch=1)
    crld(out, "crld_normkd", base="normkd", mask_rule="by_label")
    crld(out, "crld_norm_dkd", base="norm_dkd", alpha=4.0, beta=5.0, norm=1.5)


# PLL

FEATURES = 12


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES, bias=False)

    def forward(self, x):
        return self.fc(x)


def pll(out, name, network="linear", **settings):
    rows = 6
    if network == "linear":
        d = Draw(seed_of(name))
        batch = {"feature": 2 * d.normal(rows, FEATURES), "label": d.ints(CLASSES, rows)}
        net, t = set_weights(Probe().to(F64)), set_weights(Probe().to(F64), "teacher.").requires_grad_(False)
    else:
        batch, _ = batch_of(name, rows)
        net, t = build(network, CLASSES), teacher(network, CLASSES)
    given = batch["feature"] if network == "linear" else batch["image"]

    def losses():
        z, theirs = net(given), t(given)
        if settings.get("targets") == "soft":
            term = {"ce": (1, ce_soft(z, torch.softmax(theirs, 1)))}
        else:
            k = settings.get("candidates", 2)
            order = theirs.sort(1, descending=True)
            assert (order.values[:, k - 1] - order.values[:, k]).min() > 1e-2, f"{name}: candidates are near a tie"
            term = {"gce": (1, gce_pair(z, order.indices[:, :k], settings.get("q", 0.7)))}
        return term, {"logits": z, "teacher.logits": theirs} | top1(z, batch["label"])

    watch = ["fc.weight"] if network == "linear" else RESNET
    case = Case(name, {"name": "pll"} | settings, batch, network, net, [(network, t)], watch=watch, steps=3)
    case.run(out, losses, scripts=SCRIPTS)


def plls(out):
    pll(out, "pll_soft_linear", targets="soft")
    pll(out, "pll_top_linear", targets="top")
    pll(out, "pll_top3_linear", candidates=3, q=0.3)
    pll(out, "pll_soft_resnet8", "resnet8", targets="soft")
    pll(out, "pll_top_resnet8", "resnet8")


def main(out):
    for part in (patch_swaps, mixskds, atscs, simkds, crlds, plls):
        part(out)
