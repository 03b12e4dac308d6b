"""Goldens of losses over logits: losses/NAME.safetensors. out.loss is a mean over the rows unless its attribute says otherwise.

grad.X is d out.loss / d in.X with nothing detached unless the file's attributes name a detached side. Formulas are written out; where
torch has the loss too, the two are compared.
"""

import torch
from torch.nn import functional as F

from common import F64, Draw, save, seed_of


def smoothed_target(label, k, on, off):
    return torch.full((len(label), k), off, dtype=F64).scatter_(1, label.long().view(-1, 1), on)


def ce_soft(z, q):
    return -(q * torch.log_softmax(z, 1)).sum(1).mean()


def ce(z, label):
    return F.cross_entropy(z, label.long())


def kl_rows(t, s, temperature):
    """sum_k q (log q - log p) of each row, without T²."""
    log_q, log_p = torch.log_softmax(t / temperature, 1), torch.log_softmax(s / temperature, 1)
    return (log_q.exp() * (log_q - log_p)).sum(1)


def kl(t, s, temperature):
    """KL_T(t -> s), T² included."""
    return temperature ** 2 * kl_rows(t, s, temperature).mean()


def dkd_rows(t, s, label, temperature):
    """Target-class and non-target-class parts of each row, without T²; log(1 - p_y) is a log-sum-exp over the other classes."""
    y = label.long().view(-1, 1)
    others = torch.ones_like(s, dtype=torch.bool).scatter_(1, y, False)

    def split(z):
        log_p = torch.log_softmax(z / temperature, 1)
        rest = log_p[others].view(len(z), -1)
        return log_p.gather(1, y).squeeze(1), torch.logsumexp(rest, 1), torch.log_softmax(rest, 1)

    (t_on, t_off, t_rest), (s_on, s_off, s_rest) = split(t), split(s)
    target = t_on.exp() * (t_on - s_on) + t_off.exp() * (t_off - s_off)
    return target, (t_rest.exp() * (t_rest - s_rest)).sum(1)


def gce_pair(z, pair, q):
    p = torch.softmax(z, 1).gather(1, pair.long())
    return ((1 - p ** q) / q).mean()


def deviation_temperature(z, c):
    """c·(unbiased deviation + 1e-8) of each row: the guard is for equal logits."""
    return c * (z.std(1, keepdim=True) + 1e-8)


def norm_kd(t, s, c):
    """Temperatures by deviation on both sides; the student's carries gradient."""
    tau_t, tau_s = deviation_temperature(t, c), deviation_temperature(s, c)
    log_q, log_p = torch.log_softmax(t / tau_t, 1), torch.log_softmax(s / tau_s, 1)
    return (tau_t.squeeze(1) ** 2 * (log_q.exp() * (log_q - log_p)).sum(1)).mean()


def ce_mixed(z, label, other, lam):
    """λ on one label, 1 - λ on the other; a negative label contributes nothing."""
    log_p = torch.log_softmax(z, 1)

    def part(label):
        picked = log_p.gather(1, label.long().clamp(min=0).view(-1, 1)).squeeze(1)
        return -torch.where(label >= 0, picked, 0.0)

    return (lam * part(label) + (1 - lam) * part(other)).mean()


def kl_given(q, z, temperature):
    """Rows of probabilities against softmax(z / T), 0 log 0 being 0; without T²."""
    return F.kl_div(torch.log_softmax(z / temperature, 1), q, reduction="none").sum(1)


def one_minus_pearson(z, t, dim):
    """1 - correlation of softmax(z) and softmax(t) along an axis, 1e-8 in the denominator."""
    a, b = torch.softmax(z, 1), torch.softmax(t, 1)
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return 1 - (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)


def ips(a, b, label, temperature, alpha, mode):
    """(cross-entropy part, distillation part) of intra-class patch swap; their sum is the loss."""
    cross = (ce(a, label) + ce(b, label)) / 2
    if mode == "two_way_sg":
        distil = alpha / 2 * (kl(b.detach(), a, temperature) + kl(a.detach(), b, temperature))
    elif mode == "two_way_full":
        distil = alpha / 2 * (kl(b, a, temperature) + kl(a, b, temperature))
    elif mode == "one_way_b_to_a":
        distil = alpha * kl(b.detach(), a, temperature)
    else:  # by_confidence: the image surer of the label teaches; ties: a teaches
        y = label.long().view(-1, 1)
        a_teaches = (torch.softmax(a, 1).gather(1, y) >= torch.softmax(b, 1).gather(1, y)).squeeze(1)
        rows = torch.where(a_teaches, kl_rows(a.detach(), b, temperature), kl_rows(b.detach(), a, temperature))
        distil = alpha * temperature ** 2 * rows.mean()
    return cross, distil


IPS_MODES = ("two_way_sg", "two_way_full", "one_way_b_to_a", "by_confidence")


def case(out, name, attr, inputs, loss, tolerance=1e-12):
    """loss(inputs by name) -> {"loss": scalar, further values}; gradients of every float input that takes part."""
    leaves = {k: v.detach().clone().requires_grad_(v.dtype.is_floating_point and k not in attr.get("detached", [])) for k, v in inputs.items()}
    outs = loss(leaves)
    outs["loss"].backward()
    tensors = {f"in.{k}": v for k, v in inputs.items()} | {f"out.{k}": v for k, v in outs.items()}
    tensors |= {f"grad.{k}": v.grad for k, v in leaves.items() if v.grad is not None}
    save(out, f"losses/{name}", tensors, attr, tolerance, seed_of(name), [__file__])
    return tensors


def pair(name, b, k, scale=3.0):
    d = Draw(seed_of(name))
    return {"student": scale * d.normal(b, k), "teacher": scale * d.normal(b, k), "label": d.ints(k, b)}


def cross_entropies(out):
    for name, b, k, scale in [("ce", 5, 7, 3.0), ("ce_two_classes", 3, 2, 3.0), ("ce_wide", 3, 103, 3.0), ("ce_large", 4, 9, 500.0)]:
        d = Draw(seed_of(name))
        case(out, name, {"loss": "ce"}, {"logits": scale * d.normal(b, k), "label": d.ints(k, b)},
             lambda t: {"loss": ce(t["logits"], t["label"])})
    k, eps = 7, 0.1
    for name, on, off in [("ce_smoothed_others", 1 - eps, eps / (k - 1)), ("ce_smoothed_all", 1 - eps + eps / k, eps / k)]:
        d = Draw(seed_of(name))
        made = case(out, name, {"loss": "ce_smoothed", "eps": eps, "on": on, "off": off}, {"logits": 3 * d.normal(5, k), "label": d.ints(k, 5)},
                    lambda t: {"loss": ce_soft(t["logits"], smoothed_target(t["label"], k, on, off))})
        if name == "ce_smoothed_all":
            torch.testing.assert_close(made["out.loss"], F.cross_entropy(made["in.logits"], made["in.label"].long(), label_smoothing=eps))
    d = Draw(seed_of("ce_soft"))
    target = torch.softmax(2 * d.normal(5, 7), 1)
    target[0] = F.one_hot(torch.tensor(3), 7)  # zero probabilities
    made = case(out, "ce_soft", {"loss": "ce_soft", "detached": ["target"]}, {"logits": 3 * d.normal(5, 7), "target": target},
                lambda t: {"loss": ce_soft(t["logits"], t["target"])})
    torch.testing.assert_close(made["out.loss"], F.cross_entropy(made["in.logits"], target))


def targets(out):
    """Cross-entropies and KL against the other kinds of targets."""
    k = 7
    d = Draw(seed_of("ce_mixed"))
    inputs = {"logits": 3 * d.normal(6, k), "label": d.ints(k, 6), "other": d.ints(k, 6), "lambda": torch.tensor(0.3, dtype=F64)}
    inputs["other"][0] = inputs["label"][0]  # the same class twice
    inputs["label"][1] = inputs["other"][2] = inputs["label"][3] = inputs["other"][3] = -1
    case(out, "ce_mixed", {"loss": "ce_mixed", "detached": ["lambda"]}, inputs,
         lambda t: {"loss": ce_mixed(t["logits"], t["label"], t["other"], t["lambda"])})

    d = Draw(seed_of("ce_smoothed_t20"))
    attr = {"loss": "ce_smoothed", "temperature": 20.0, "on": 0.9, "off": 0.1 / (k - 1)}
    case(out, "ce_smoothed_t20", attr, {"logits": 9 * d.normal(5, k), "label": d.ints(k, 5)},
         lambda t: {"loss": ce_soft(t["logits"] / 20, smoothed_target(t["label"], k, attr["on"], attr["off"]))})

    d = Draw(seed_of("ce_logits_t4"))
    case(out, "ce_logits_t4", {"loss": "ce_logits", "temperature": 4.0, "detached": ["target"]}, {"logits": 3 * d.normal(5, k), "target": 3 * d.normal(5, k)},
         lambda t: {"loss": ce_soft(t["logits"] / 4, torch.softmax(t["target"] / 4, 1))})

    d = Draw(seed_of("kl_probabilities"))
    q = torch.softmax(2 * d.normal(5, k), 1)
    q[0] = F.one_hot(torch.tensor(3), k)  # zero probabilities
    case(out, "kl_probabilities", {"loss": "kl_probabilities", "temperature": 4.0, "detached": ["target"]}, {"logits": 3 * d.normal(5, k), "target": q},
         lambda t: {"loss": kl_given(t["target"], t["logits"], 4.0).mean()})

    # The second softmax over a smoothed label (Tf-KD reg), a smoothed label, a hard one.
    classes = 100
    on, off = (float(x) for x in torch.softmax(torch.tensor([0.99] + [0.01 / 99] * 99, dtype=F64) / 20, 0)[:2])
    assert (round(on, 6), round(off, 6)) == (0.010502, 0.009995)
    for name, k, on, off, temperature in [("kl_label_tfkd", classes, on, off, 1.0), ("kl_label_smoothed", 7, 0.9, 0.1 / 6, 2.0), ("kl_label_hard", 7, 1.0, 0.0, 1.0)]:
        d = Draw(seed_of(name))
        case(out, name, {"loss": "kl_label", "temperature": temperature, "on": on, "off": off}, {"logits": 3 * d.normal(4, k), "label": d.ints(k, 4)},
             lambda t: {"loss": kl_given(smoothed_target(t["label"], k, on, off), t["logits"], temperature).mean()})


def distillation(out):
    for name, b, k, temperature, scale in [("kl_t4", 5, 7, 4.0, 3.0), ("kl_t1", 3, 10, 1.0, 3.0), ("kl_wide", 2, 103, 4.0, 3.0),
                                           ("kl_large", 3, 9, 1.0, 200.0)]:
        inputs = pair(name, b, k, scale)
        del inputs["label"]
        made = case(out, name, {"loss": "kl", "temperature": temperature, "rows": "out.rows and out.kl are without T², out.loss is with T²"}, inputs,
                    lambda t: {"loss": kl(t["teacher"], t["student"], temperature), "rows": kl_rows(t["teacher"], t["student"], temperature),
                               "kl": kl_rows(t["teacher"], t["student"], temperature).mean()})
        torch.testing.assert_close(made["out.loss"].detach(), temperature ** 2 * F.kl_div(
            F.log_softmax(inputs["student"] / temperature, 1), F.log_softmax(inputs["teacher"] / temperature, 1), reduction="batchmean", log_target=True))
        # Detaching the teacher leaves the student's gradient as it is.
        s = inputs["student"].clone().requires_grad_()
        kl(inputs["teacher"], s, temperature).backward()
        torch.testing.assert_close(s.grad, made["grad.student"], rtol=1e-13, atol=1e-15)

    for name, b, k, temperature, alpha, beta in [("dkd", 5, 7, 4.0, 1.0, 8.0), ("dkd_two_classes", 3, 2, 4.0, 1.0, 8.0), ("dkd_t1", 3, 10, 1.0, 1.0, 0.5)]:
        def loss(t):
            target, rest = (temperature ** 2 * rows.mean() for rows in dkd_rows(t["teacher"], t["student"], t["label"], temperature))
            return {"loss": alpha * target + beta * rest, "tckd": target, "nckd": rest}
        inputs = pair(name, b, k)
        case(out, name, {"loss": "dkd", "temperature": temperature, "alpha": alpha, "beta": beta, "detached": ["teacher"]}, inputs, loss)
        # Row by row KL = TCKD + (1 - p_y of the teacher) NCKD.
        t, s, label = inputs["teacher"], inputs["student"], inputs["label"]
        target, rest = dkd_rows(t, s, label, temperature)
        off = 1 - torch.softmax(t / temperature, 1).gather(1, label.long().view(-1, 1)).squeeze(1)
        torch.testing.assert_close(kl_rows(t, s, temperature), target + off * rest, rtol=1e-12, atol=1e-14)

    # Rows where the teacher is sure, and padding; divided by all rows.
    name, threshold, temperature = "dkd_masked", 0.8, 4.0
    inputs = pair(name, 12, 7)
    inputs["label"][torch.softmax(inputs["teacher"], 1).max(1).values.argmax()] = -1  # a sure one
    def masked(t):
        keep = (torch.softmax(t["teacher"], 1).max(1).values >= threshold) & (t["label"] >= 0)
        assert 2 < keep.sum() < 9
        rows = dkd_rows(t["teacher"], t["student"], t["label"].clamp(min=0), temperature)
        target, rest = (temperature ** 2 * torch.where(keep, row, 0.0).mean() for row in rows)
        return {"loss": target + 8.0 * rest, "tckd": target, "nckd": rest}
    case(out, name, {"loss": "dkd", "temperature": temperature, "alpha": 1.0, "beta": 8.0, "threshold": threshold, "detached": ["teacher"]}, inputs, masked)

    name, c = "norm_dkd", 2.0
    def norm_dkd(t):
        tau_t, tau_s = deviation_temperature(t["teacher"], c), deviation_temperature(t["student"], c)
        rows = dkd_rows(t["teacher"] / tau_t, t["student"] / tau_s, t["label"], 1.0)
        target, rest = ((tau_t.squeeze(1) ** 2 * row).mean() for row in rows)
        return {"loss": 7.0 * target + 2.0 * rest, "tckd": target, "nckd": rest}
    case(out, name, {"loss": "norm_dkd", "c": c, "alpha": 7.0, "beta": 2.0, "detached": ["teacher"]}, pair(name, 5, 7), norm_dkd)

    for name, b, k, over in [("dist_rows", 5, 7, "batch"), ("dist_columns", 5, 7, "channel"), ("dist_rows_wide", 3, 103, "batch"),
                             ("dist_columns_pair", 2, 10, "channel")]:
        inputs = pair(name, b, k)
        del inputs["label"]
        case(out, name, {"loss": "correlation", "over": over, "detached": ["teacher"]}, inputs,
             lambda t: {"loss": one_minus_pearson(t["student"], t["teacher"], 1 if over == "batch" else 0).mean()}, 1e-11)

    for name, c, b, k in [("norm_kd", 2.0, 5, 7), ("norm_kd_c1", 1.0, 3, 10)]:
        case(out, name, {"loss": "norm_kd", "c": c, "detached": ["teacher"]}, pair(name, b, k),
             lambda t: {"loss": norm_kd(t["teacher"], t["student"], c)})


def others(out):
    for q in (0.7, 0.3, 1.0):
        name = f"gce_q{int(10 * q):02d}"
        d = Draw(seed_of(name))
        inputs = {"logits": 3 * d.normal(5, 7), "candidates": torch.topk(d.normal(5, 7), 2).indices.to(torch.int32)}
        case(out, name, {"loss": "gce", "q": q}, inputs, lambda t: {"loss": gce_pair(t["logits"], t["candidates"], q)})
    for name, shape in [("mse", (3, 4, 5, 7)), ("mse_rows", (5, 9))]:
        d = Draw(seed_of(name))
        made = case(out, name, {"loss": "mse"}, {"a": d.normal(*shape), "b": d.normal(*shape)}, lambda t: {"loss": (t["a"] - t["b"]).pow(2).mean()})
        torch.testing.assert_close(made["out.loss"].detach(), F.mse_loss(made["in.a"], made["in.b"]))
    case(out, "mean_square", {"loss": "mean_square"}, {"a": Draw(seed_of("mean_square")).normal(3, 5)}, lambda t: {"loss": t["a"].pow(2).mean()})
    # One class is true: sum over classes of the binary cross-entropy, mean over rows.
    for name, scale, true in [("bce", 3.0, 0), ("bce_large", 800.0, 3)]:
        target = torch.zeros(5, 4, dtype=F64)
        target[:, true] = 1
        case(out, name, {"loss": "bce", "class": true}, {"logits": scale * Draw(seed_of(name)).normal(5, 4)},
             lambda t: {"loss": F.binary_cross_entropy_with_logits(t["logits"], target, reduction="none").sum(1).mean()})


# Values of the formulas at 2 sin(0.37 i + 0.5) and 2 sin(0.37 i + 1.7), to 9 digits: a change of this script is caught here.
IPS_LITERAL = {
    "ce": 1.904680050, "kd": 0.198256678,
    "two_way_sg": [(-0.042586608, -0.220728253, 0.105878716, 0.157436144), (0.170933259, -0.147189508, 0.021044530, -0.044788282)],
    "two_way_full": [(-0.110660107, -0.250456680, 0.128785691, 0.232331096), (0.248780131, -0.127402826, -0.011044662, -0.110332643)],
}


def patch_swap(out):
    def wave(shift):
        return 2 * torch.sin(0.37 * torch.arange(8, dtype=F64) + shift).view(2, 4)

    for mode in IPS_MODES:
        def loss(t, temperature=4.0):
            cross, distil = ips(t["a"], t["b"], t["label"], temperature, 1.0, mode)
            return {"loss": cross + distil, "ce": cross, "kd": distil}
        attr = {"loss": "ips", "temperature": 4.0, "alpha": 1.0, "kl": mode}
        small = {"a": wave(0.5), "b": wave(1.7), "label": torch.tensor([1, 3], dtype=torch.int32)}
        made = case(out, f"ips_{mode}_small", attr, small, loss)
        if mode in IPS_LITERAL:
            literal = torch.tensor([IPS_LITERAL["ce"], IPS_LITERAL["kd"]], dtype=F64)
            torch.testing.assert_close(torch.stack([made["out.ce"], made["out.kd"]]).detach(), literal, rtol=0, atol=1e-9)
            rows = torch.stack([made["grad.a"][0], made["grad.b"][0]])
            torch.testing.assert_close(rows, torch.tensor(IPS_LITERAL[mode], dtype=F64), rtol=0, atol=1e-9)
        d = Draw(seed_of("ips"))  # the same values for every mode
        case(out, f"ips_{mode}", attr, {"a": 3 * d.normal(6, 10), "b": 3 * d.normal(6, 10), "label": d.ints(10, 6)}, loss)


def main(out):
    for part in (cross_entropies, targets, distillation, others, patch_swap):
        part(out)
