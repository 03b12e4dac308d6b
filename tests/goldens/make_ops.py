"""Goldens of single ops: ops/NAME.safetensors, one case a file. Layouts are the program's: NHWC, KRSC.

A case's loss is sum(out.y * in.cotangent); grad.X is its gradient with respect to in.X or w.X. Integer inputs have none.
"""

import torch
from torch.nn import functional as F

from common import F64, Draw, kcrs, nchw, nhwc, save, seed_of

EPS = 1e-5


def case(out, name, attr, inputs, forward, tolerance=1e-12):
    """inputs: tensors by full name (`in.x`, `w.w`); forward(tensors by short name) -> dict of outputs, the first being `y`."""
    seed = seed_of(name)
    short = {}
    for key, value in inputs.items():
        leaf = value.detach().clone()
        if leaf.dtype.is_floating_point and not key.startswith("w.running"):
            leaf = leaf.to(F64).requires_grad_()
        short[key.split(".", 1)[1]] = leaf
    outs = forward(short)
    y = outs["y"]
    cotangent = Draw(seed + 1).normal(*y.shape)
    (y * cotangent).sum().backward()
    tensors = dict(inputs) | {f"out.{k}": v for k, v in outs.items()} | {"in.cotangent": cotangent}
    for key in inputs:
        leaf = short[key.split(".", 1)[1]]
        if leaf.grad is not None:
            tensors["grad." + key.split(".", 1)[1]] = leaf.grad
    save(out, f"ops/{name}", tensors, attr, tolerance, seed, [__file__])


def convs(out):
    # name, N, H, W, C, K, kernel, stride, pad, groups; why
    table = [
        ("k1s1", 2, 5, 7, 3, 6, 1, 1, 0, 1),  # pure GEMM, odd sizes
        ("k1s2", 2, 7, 5, 5, 9, 1, 2, 0, 1),  # projection, odd size
        ("k1s2_even", 1, 8, 6, 4, 5, 1, 2, 0, 1),  # last row and column never read
        ("k1s1_pad1", 1, 3, 4, 3, 4, 1, 1, 1, 1),  # border outputs are zero
        ("k1s1_g3", 2, 4, 5, 6, 9, 1, 1, 0, 3),  # ShuffleNet
        ("k1s1_wide", 1, 3, 3, 35, 19, 1, 1, 0, 1),  # channels past two vectors, with tails
        ("k3s1", 2, 5, 6, 3, 8, 3, 1, 1, 1),  # first layer
        ("k3s1_wide", 1, 5, 4, 17, 21, 3, 1, 1, 1),  # channel tails on both sides
        ("k3s1_pad0", 1, 5, 4, 3, 4, 3, 1, 0, 1),
        ("k3s1_pad2", 1, 4, 3, 3, 4, 3, 1, 2, 1),  # output larger than input
        ("k3s1_1x1", 2, 1, 1, 5, 4, 3, 1, 1, 1),  # only the middle tap meets the image
        ("k3s2", 2, 7, 9, 5, 7, 3, 2, 1, 1),
        ("k3s2_even", 1, 8, 8, 4, 6, 3, 2, 1, 1),  # the lower padding is not read
        ("k3s2_pad0", 1, 6, 8, 3, 4, 3, 2, 0, 1),  # last row and column never read
        ("k3s1_g2", 1, 4, 5, 6, 4, 3, 1, 1, 2),
        ("k3s2_g4", 1, 7, 6, 8, 8, 3, 2, 1, 4),  # ResNeXt
        ("k3s1_dw", 2, 5, 6, 7, 7, 3, 1, 1, 7),
        ("k3s2_dw", 2, 7, 6, 5, 5, 3, 2, 1, 5),
        ("k3s1_dw_wide", 1, 4, 5, 54, 54, 3, 1, 1, 54),  # no multiple of a vector
        ("k3s1_dw_x2", 1, 5, 5, 3, 6, 3, 1, 1, 3),  # two filters per channel
        ("k5s1", 1, 6, 7, 3, 4, 5, 1, 2, 1),
        ("k5s2", 1, 9, 8, 3, 4, 5, 2, 2, 1),
        ("k5s2_pad0", 1, 9, 8, 2, 3, 5, 2, 0, 1),
        ("k5s1_dw", 1, 6, 5, 3, 3, 5, 1, 2, 3),
        ("k7s2", 2, 13, 11, 3, 5, 7, 2, 3, 1),  # ImageNet stem
        ("k7s1", 1, 8, 7, 2, 3, 7, 1, 3, 1),
        ("k3s3", 1, 8, 7, 3, 4, 3, 3, 1, 1),  # stride equal to the kernel
    ]
    for name, n, h, w, c, k, r, stride, pad, groups in table:
        name = f"conv_{name}"
        d = Draw(seed_of(name))
        inputs = {"in.x": d.normal(n, h, w, c), "w.w": d.normal(k, r, r, c // groups)}
        attr = {"op": "conv", "stride": stride, "pad": pad, "groups": groups}
        case(out, name, attr, inputs,
             lambda t: {"y": nhwc(F.conv2d(nchw(t["x"]), kcrs(t["w"]), None, stride, pad, 1, groups))})


def linears(out):
    for name, m, k, n in [("linear", 3, 7, 5), ("linear_one_row", 1, 33, 10), ("linear_wide", 9, 19, 37)]:
        d = Draw(seed_of(name))
        inputs = {"in.x": d.normal(m, k), "w.w": d.normal(n, k), "w.bias": d.normal(n)}
        case(out, name, {"op": "linear"}, inputs, lambda t: {"y": F.linear(t["x"], t["w"], t["bias"])})
    d = Draw(seed_of("add_bias"))
    case(out, "add_bias", {"op": "add_bias"}, {"in.x": d.normal(2, 3, 5, 7), "w.bias": d.normal(7)},
         lambda t: {"y": t["x"] + t["bias"]})


def bn_train(t, groups, eps):
    """Normalises with torch, group by group; statistics are returned too, running ones moved in group order."""
    running_mean, running_var = t["running_mean"].clone(), t["running_var"].clone()
    ys, means, variances = [], [], []
    for x in t["x"].chunk(groups):
        ys.append(nhwc(F.batch_norm(nchw(x), running_mean, running_var, t["scale"], t["bias"], True, 0.1, eps)))
        variance, mean = torch.var_mean(x, (0, 1, 2), correction=0)
        means.append(mean)
        variances.append(variance)
    mean, var = torch.stack(means), torch.stack(variances)
    return {"y": torch.cat(ys), "mean": mean, "var": var, "rstd": (var + eps).rsqrt(),
            "running_mean": running_mean, "running_var": running_var}


def bns(out):
    table = [
        ("bn_train", 4, 3, 5, 7, 1), ("bn_train_groups2", 6, 2, 3, 5, 2), ("bn_train_groups3", 6, 3, 2, 19, 3),
        ("bn_train_rows", 5, 1, 1, 9, 1),  # rows, no image
        ("bn_train_pair", 2, 1, 1, 4, 1),  # two values a channel: x̂ is ±1, dx nearly 0 by cancellation
    ]
    for name, n, h, w, c, groups in table:
        d = Draw(seed_of(name))
        inputs = {"in.x": 0.7 + 1.3 * d.normal(n, h, w, c), "w.scale": 1 + 0.3 * d.normal(c), "w.bias": d.normal(c),
                  "w.running_mean": d.normal(c), "w.running_var": 0.5 + d.uniform(c)}
        tolerance = 1e-9 if name == "bn_train_pair" else 1e-12
        case(out, name, {"op": "bn_train", "groups": groups, "eps": EPS, "momentum": 0.1}, inputs,
             lambda t: bn_train(t, groups, EPS), tolerance)
    # f32 values far from zero: E[x²] - E[x]² in f32 is wrong here by several percent.
    name = "bn_train_offset_f32"
    d = Draw(seed_of(name))
    inputs = {"in.x": (100 + 0.1 * d.normal(8, 4, 4, 3)).float(), "w.scale": (1 + 0.3 * d.normal(3)).float(),
              "w.bias": d.normal(3).float(), "w.running_mean": torch.zeros(3, dtype=F64), "w.running_var": torch.ones(3, dtype=F64)}
    case(out, name, {"op": "bn_train", "groups": 1, "eps": EPS, "momentum": 0.1}, inputs, lambda t: bn_train(t, 1, EPS), 1e-4)

    name = "bn_frozen"
    d = Draw(seed_of(name))
    inputs = {"in.x": d.normal(3, 2, 5, 7), "w.scale": 1 + 0.3 * d.normal(7), "w.bias": d.normal(7),
              "w.running_mean": d.normal(7), "w.running_var": 0.5 + d.uniform(7)}
    case(out, name, {"op": "bn_frozen", "eps": EPS}, inputs, lambda t: {"y": nhwc(F.batch_norm(
        nchw(t["x"]), t["running_mean"], t["running_var"], t["scale"], t["bias"], False, 0.1, EPS))})

    name = "fold_bn"  # y = conv(x, w') + b' equals bn_frozen(conv(x, w))
    d = Draw(seed_of(name))
    w, x = d.normal(5, 3, 3, 4), d.normal(1, 4, 4, 4)
    scale, bias, mean, var = 1 + 0.3 * d.normal(5), d.normal(5), d.normal(5), 0.5 + d.uniform(5)
    y = nhwc(F.batch_norm(F.conv2d(nchw(x), kcrs(w), None, 1, 1), mean, var, scale, bias, False, 0.1, EPS))
    s = scale / (var + EPS).sqrt()
    folded, shift = w * s.view(-1, 1, 1, 1), bias - mean * s
    assert torch.allclose(y, nhwc(F.conv2d(nchw(x), kcrs(folded), shift, 1, 1)), rtol=1e-12, atol=1e-12)
    save(out, f"ops/{name}", {"in.x": x, "w.w": w, "w.scale": scale, "w.bias": bias, "w.running_mean": mean,
                              "w.running_var": var, "out.y": y, "out.w": folded, "out.bias": shift},
         {"op": "fold_bn", "eps": EPS, "stride": 1, "pad": 1, "groups": 1}, 1e-12, seed_of(name), [__file__])


def elementwise(out):
    x = 4 * Draw(seed_of("unary")).normal(2, 3, 5, 7)
    x.view(-1)[[0, 9, 50]] = torch.tensor([0.0, 6.0, -0.0], dtype=F64)  # the kinks: gradient 0 at both
    for name, f in [("relu", F.relu), ("relu6", F.relu6), ("sigmoid", torch.sigmoid)]:
        case(out, name, {"op": name}, {"in.x": x}, lambda t: {"y": f(t["x"])})
    for name, f in [("add", torch.add), ("sub", torch.sub), ("mul", torch.mul)]:
        d = Draw(seed_of(name))
        case(out, name, {"op": name}, {"in.a": d.normal(2, 3, 5, 7), "in.b": d.normal(2, 3, 5, 7)},
             lambda t: {"y": f(t["a"], t["b"])})
    case(out, "scale", {"op": "scale", "factor": -0.375}, {"in.x": x}, lambda t: {"y": t["x"] * -0.375})


def max_pool(t, k, stride, pad):
    """y and the winner's index inside its window, row-major; the first of equal values wins."""
    x = nchw(t["x"])
    y, flat = F.max_pool2d(x, k, stride, pad, return_indices=True)
    rows = flat // x.shape[3] - (torch.arange(y.shape[2]) * stride - pad).view(-1, 1)
    columns = flat % x.shape[3] - (torch.arange(y.shape[3]) * stride - pad)
    return {"y": nhwc(y), "argmax": nhwc(rows * k + columns).to(torch.uint8)}


def pools(out):
    for name, n, h, w, c, k, stride, pad in [
        ("max_pool_k3s2p1", 2, 7, 9, 5, 3, 2, 1), ("max_pool_k3s2p1_even", 1, 8, 6, 4, 3, 2, 1), ("max_pool_k2s2", 2, 6, 7, 3, 2, 2, 0),
        ("max_pool_ties", 2, 7, 6, 3, 3, 2, 1), ("max_pool_negative", 1, 5, 5, 3, 3, 2, 1),
    ]:
        d = Draw(seed_of(name))
        x = d.normal(n, h, w, c)
        if name.endswith("ties"):  # three values only, as after a ReLU
            x = F.relu(x.round())
        if name.endswith("negative"):  # padding is -infinity, not zero
            x = x - 10
        case(out, name, {"op": "max_pool", "kernel": k, "stride": stride, "pad": pad}, {"in.x": x},
             lambda t: max_pool(t, k, stride, pad))
    for name, n, h, w, c, k, stride, pad in [
        ("avg_pool_k2s2", 2, 6, 7, 3, 2, 2, 0), ("avg_pool_k3s2p1", 2, 7, 9, 5, 3, 2, 1), ("avg_pool_k3s2p1_even", 1, 8, 6, 4, 3, 2, 1),
    ]:
        d = Draw(seed_of(name))
        case(out, name, {"op": "avg_pool", "kernel": k, "stride": stride, "pad": pad}, {"in.x": d.normal(n, h, w, c)},
             lambda t: {"y": nhwc(F.avg_pool2d(nchw(t["x"]), k, stride, pad, count_include_pad=True))})
    for name, shape in [("global_avg_pool", (3, 4, 5, 7)), ("global_avg_pool_1x1", (2, 1, 1, 9))]:
        case(out, name, {"op": "global_avg_pool"}, {"in.x": Draw(seed_of(name)).normal(*shape)},
             lambda t: {"y": t["x"].mean((1, 2))})


def rows_and_channels(out):
    def values(name, **shapes):
        d = Draw(seed_of(name))
        return {f"in.{k}": d.normal(*shape) for k, shape in shapes.items()}

    shapes = {"a": (2, 3, 4, 5), "b": (3, 3, 4, 5), "c": (1, 3, 4, 5)}
    case(out, "concat_batch", {"op": "concat", "axis": "batch"}, values("concat_batch", **shapes),
         lambda t: {"y": torch.cat([t["a"], t["b"], t["c"]])})
    shapes = {"a": (2, 3, 4, 5), "b": (2, 3, 4, 2), "c": (2, 3, 4, 1)}
    case(out, "concat_channel", {"op": "concat", "axis": "channel"}, values("concat_channel", **shapes),
         lambda t: {"y": torch.cat([t["a"], t["b"], t["c"]], -1)})
    case(out, "slice_batch", {"op": "slice", "axis": "batch", "start": 1, "len": 2}, values("slice_batch", x=(4, 2, 3, 5)),
         lambda t: {"y": t["x"][1:3]})
    case(out, "slice_channel", {"op": "slice", "axis": "channel", "start": 2, "len": 4}, values("slice_channel", x=(2, 2, 3, 7)),
         lambda t: {"y": t["x"][..., 2:6]})
    index = torch.tensor([3, 0, 3, 1, 3, 0], dtype=torch.int32)  # rows 2 and 4 never taken, row 3 three times
    case(out, "gather_rows", {"op": "gather_rows"}, values("gather_rows", x=(5, 7)) | {"in.index": index},
         lambda t: {"y": t["x"][t["index"].long()]})
    permutation = torch.tensor([2, 1, 3, 0], dtype=torch.int32)  # row 1 mixes with itself
    case(out, "mix_rows", {"op": "mix_rows"}, values("mix_rows", x=(4, 2, 3, 5)) | {"in.permutation": permutation,
         "in.lambda": torch.tensor(0.3, dtype=F64)},
         lambda t: {"y": t["lambda"].detach() * t["x"] + (1 - t["lambda"].detach()) * t["x"][t["permutation"].long()]})
    for groups in (2, 3):
        name = f"channel_shuffle_g{groups}"
        case(out, name, {"op": "channel_shuffle", "groups": groups}, values(name, x=(2, 3, 2, 12)),
             lambda t: {"y": nhwc(F.channel_shuffle(nchw(t["x"]), groups))})


def patch_swap(out):
    """mask [n, cells] of bytes 0 and 1, cell = row * columns + column; a cell is exchanged between images i and n + i."""
    def swap(x, mask, m):
        n, h, w = x.shape[0] // 2, x.shape[1], x.shape[2]
        columns = -(-w // m)
        cell = (torch.arange(h) // m).view(-1, 1) * columns + torch.arange(w) // m
        pick = mask[:, cell].bool().unsqueeze(-1)  # [n, h, w, 1]
        a, b = x[:n], x[n:]
        return torch.cat([torch.where(pick, b, a), torch.where(pick, a, b)])

    for name, n, h, w, m in [("patch_swap", 3, 8, 8, 2), ("patch_swap_ragged", 2, 7, 10, 3), ("patch_swap_pixels", 2, 4, 5, 1)]:
        d = Draw(seed_of(name))
        cells = -(-h // m) * -(-w // m)
        mask = d.ints(2, n, cells, dtype=torch.uint8)
        if name == "patch_swap":
            mask[1], mask[2] = 0, 1  # nothing, then everything
        case(out, name, {"op": "patch_swap", "cell": m}, {"in.x": d.normal(2 * n, h, w, 3), "in.mask": mask},
             lambda t: {"y": swap(t["x"], t["mask"], m)})


def boxes(out):
    """CutMix and erasing. A box is (top, left, bottom, right), the last two exclusive, clipped to the image; an empty one does nothing."""
    for name, shape, box in [("paste_box", (4, 6, 7, 3), (1, 2, 4, 7)), ("paste_box_clipped", (3, 5, 4, 1), (-2, 2, 3, 9)),
                             ("paste_box_empty", (2, 3, 3, 3), (1, 1, 1, 3))]:
        x = Draw(seed_of(name)).normal(*shape)
        permutation = torch.tensor([2, 1, 0, 0][:shape[0]] if shape[0] > 2 else [1, 0], dtype=torch.int32)
        y = x.clone()
        top, left, bottom, right = (max(v, 0) for v in box)
        y[:, top:bottom, left:right] = x[permutation.long()][:, top:bottom, left:right]
        save(out, f"ops/{name}", {"in.x": x, "in.permutation": permutation, "in.box": torch.tensor(box, dtype=torch.int32), "out.y": y},
             {"op": "paste_box"}, 0, seed_of(name), [__file__])
    for name, shape in [("erase_boxes", (5, 6, 7, 3)), ("erase_boxes_grey", (5, 6, 7, 1))]:
        x = Draw(seed_of(name)).normal(*shape)
        rows = [(1, 2, 4, 5), (-3, 4, 2, 40), (0, 0, 6, 7), (3, 3, 3, 6), (5, 6, 2, 7)]  # inside, clipped, whole, empty twice
        fill = [0.5071, -0.25, 2.0]
        y = x.clone()
        for image, box in zip(y, rows):
            top, left, bottom, right = (max(v, 0) for v in box)
            image[top:bottom, left:right] = torch.tensor(fill[:shape[3]], dtype=F64)
        save(out, f"ops/{name}", {"in.x": x, "in.boxes": torch.tensor(rows, dtype=torch.int32), "out.y": y},
             {"op": "erase_boxes", "fill": fill}, 0, seed_of(name), [__file__])


def top_k(out):
    """Classes of the largest logits; of equal ones the lower class first."""
    for name, b, k, first in [("top_k", 7, 10, 2), ("top_k_ties", 12, 8, 5), ("top_k_all", 3, 4, 4)]:
        x = Draw(seed_of(name)).normal(b, k)
        if name.endswith("ties"):
            x = x.round()
        order = torch.sort(x, dim=1, descending=True, stable=True).indices[:, :first]
        save(out, f"ops/{name}", {"in.x": x, "out.y": order.to(torch.int32)}, {"op": "top_k", "k": first}, 0, seed_of(name), [__file__])


def neighbour_targets(out):
    """Q = (1 - w)(I - w W)^-1 softmax(z / T), W the row softmax of cosine similarities without the diagonal."""
    for name, n, d, k, omega, temperature in [("neighbour_targets", 6, 9, 7, 0.5, 4.0), ("neighbour_targets_w09", 16, 5, 10, 0.9, 4.0),
                                              ("neighbour_targets_pair", 2, 3, 4, 0.5, 1.0)]:
        draw = Draw(seed_of(name))
        f, z = draw.normal(n, d), 3 * draw.normal(n, k)
        unit = F.normalize(f, dim=1)
        w = torch.softmax((unit @ unit.T).masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf), 1)
        p = torch.softmax(z / temperature, 1)
        q = (1 - omega) * torch.linalg.solve(torch.eye(n, dtype=F64) - omega * w, p)
        torch.testing.assert_close(q, omega * w @ q + (1 - omega) * p, rtol=1e-13, atol=1e-15)
        save(out, f"ops/{name}", {"in.features": f, "in.logits": z, "out.y": q},
             {"op": "neighbour_targets", "omega": omega, "temperature": temperature}, 1e-12, seed_of(name), [__file__])


def image_input(out):
    """Zero pixels outside, crop at (row, column) of the padded image, then flip, / 255, normalise. No gradient."""
    stats = {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}
    for name, n, h, w, size, pad in [("image_input", 4, 8, 8, (8, 8), 2), ("image_input_crop", 3, 9, 7, (5, 6), 0),
                                     ("image_input_pad4", 2, 12, 12, (12, 12), 4)]:
        d = Draw(seed_of(name))
        pixels = d.ints(256, n, h, w, 3, dtype=torch.uint8)
        crop = torch.stack([d.ints(h + 2 * pad - size[0] + 1, n), d.ints(w + 2 * pad - size[1] + 1, n)], 1)
        crop[0] = 0
        crop[1] = torch.tensor([h + 2 * pad - size[0], w + 2 * pad - size[1]])
        flip = torch.arange(n, dtype=torch.int32) % 2
        y = torch.empty(n, *size, 3, dtype=F64)
        for i in range(n):
            padded = F.pad(pixels[i], (0, 0, pad, pad, pad, pad))
            top, left = crop[i].tolist()
            window = padded[top:top + size[0], left:left + size[1]]
            y[i] = window.flip(1) if flip[i] else window
        y = (y / 255 - torch.tensor(stats["mean"], dtype=F64)) / torch.tensor(stats["std"], dtype=F64)
        save(out, f"ops/{name}", {"in.pixels": pixels, "in.crop": crop, "in.flip": flip, "out.y": y},
             {"op": "image_input", "size": size, "pad": pad} | stats, 1e-12, seed_of(name), [__file__])


def softmaxes(out):
    for name, b, k, temperature in [("softmax", 3, 7, 1.0), ("softmax_t4", 5, 10, 4.0), ("softmax_large", 2, 33, 0.5)]:
        x = Draw(seed_of(name)).normal(b, k) * (300 if name == "softmax_large" else 3)  # large: overflows without the row maximum
        case(out, name, {"op": "softmax", "temperature": temperature}, {"in.x": x},
             lambda t: {"y": torch.softmax(t["x"] / temperature, 1), "log": torch.log_softmax(t["x"] / temperature, 1)})


def correct(out):
    """Rows whose label is first and among the first k. Of equal logits the lowest class comes first."""
    for name, b, k in [("correct", 16, 10), ("correct_ties", 12, 8), ("correct_two_classes", 6, 2)]:
        d = Draw(seed_of(name))
        logits, label = d.normal(b, k), d.ints(k, b)
        if name.endswith("ties"):
            logits = logits.round()
        order = torch.sort(logits, dim=1, descending=True, stable=True).indices
        rank = (order == label.long().view(-1, 1)).int().argmax(1)
        counts = {f"out.top{n}": (rank < n).sum().to(torch.int32) for n in (1, 2, 5)}
        save(out, f"ops/{name}", {"in.logits": logits, "in.label": label, "out.rank": rank.to(torch.int32)} | counts,
             {"op": "correct"}, 0, seed_of(name), [__file__])


def optimizers(out):
    """torch.optim.SGD over four steps; parameter b has no gradient in the second and is left alone there, momentum too."""
    table = [("sgd_plain", 0.0, False, 0.0), ("sgd_momentum", 0.9, False, 5e-4), ("sgd_nesterov", 0.9, True, 5e-4)]
    for name, momentum, nesterov, decay in table:
        d = Draw(seed_of(name))
        start = {"a": d.normal(5, 7), "b": d.normal(3), "c": d.normal(2, 3, 3, 4)}
        params = {k: v.clone().requires_grad_() for k, v in start.items()}
        sgd = torch.optim.SGD(params.values(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay)
        tensors = {f"w.{k}": v for k, v in start.items()}
        rates = [0.1, 0.1, 0.05, 0.01]
        for step, lr in enumerate(rates):
            sgd.param_groups[0]["lr"] = lr
            for k, p in params.items():
                p.grad = None if (step, k) == (1, "b") else d.normal(*p.shape)
                if p.grad is not None:
                    tensors[f"in.grad.{step}.{k}"] = p.grad.clone()
            sgd.step()
            for k, p in params.items():
                tensors[f"out.{step}.{k}"] = p.detach().clone()
                if momentum and sgd.state[p].get("momentum_buffer") is not None:
                    tensors[f"out.momentum.{step}.{k}"] = sgd.state[p]["momentum_buffer"].clone()
        save(out, f"ops/{name}", tensors, {"op": "sgd", "momentum": momentum, "nesterov": nesterov, "weight_decay": decay, "lr": rates,
                                           "absent": ["1.b"]}, 1e-12, seed_of(name), [__file__])

    for name, limit in [("clip_norm", 1.5), ("clip_norm_idle", 100.0)]:
        d = Draw(seed_of(name))
        params = {k: torch.zeros(s, dtype=F64, requires_grad=True) for k, s in {"a": (5, 7), "b": (3,), "c": (4, 3, 3, 2)}.items()}
        tensors = {}
        for k, p in params.items():
            p.grad = d.normal(*p.shape)
            tensors[f"in.grad.{k}"] = p.grad.clone()
        tensors["out.norm"] = torch.nn.utils.clip_grad_norm_(list(params.values()), limit)
        tensors |= {f"out.grad.{k}": p.grad for k, p in params.items()}
        save(out, f"ops/{name}", tensors, {"op": "clip_norm", "max_norm": limit}, 1e-12, seed_of(name), [__file__])

    d = Draw(seed_of("ema"))
    average = d.normal(4, 5)
    tensors = {"w.ema": average}
    decays = [0.0, 0.9, 0.999]
    for step, decay in enumerate(decays):
        w = tensors[f"in.w.{step}"] = d.normal(4, 5)
        average = tensors[f"out.{step}"] = decay * average + (1 - decay) * w
    save(out, "ops/ema", tensors, {"op": "ema", "decay": decays}, 1e-12, seed_of("ema"), [__file__])


def main(out):
    for part in (convs, linears, bns, elementwise, pools, rows_and_channels, patch_swap, boxes, image_input, softmaxes, correct, top_k,
                 neighbour_targets, optimizers):
        part(out)
