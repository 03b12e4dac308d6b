"""Goldens of methods: methods/NAME.safetensors, steps of a recipe's method in float64. make_seeds.py and make_comparators.py have the cases.

This file is what they share: the recipe's text, weights by formula, the steps, the file. Losses are written out from the formulas of the
methods' papers and differentiated by autograd; the optimizer is torch.optim.SGD, which skips parameters without gradient.
"""

import json
import math

import numpy as np
import torch
from torch import nn

from common import F64, fnv1a, save, seed_of, set_weights

import nets  # benches/peers/nets.py, on the path by way of common

SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}


class Size:
    """How large the cases are that are made now. Small: `part` methods, a few seeded 8 x 8 images, stored. make_bf16.py makes large ones:
    `rows` images and all weights by the formulas of README.md's section bf16, and none of them stored. `salt` is hashed before an image's name."""

    part, side, rows, salt = "methods", 8, None, ""

    def of(self, small):
        """Rows of a case that has so many when small."""
        return self.rows or small

    def order(self, small):
        """An order of the rows."""
        return [(5 * i + 3) % self.rows for i in range(self.rows)] if self.rows else list(small)

    def images(self, name, small):
        """Images [rows, 3, side, side] called `name`; `small` makes them when small."""
        if not self.rows:
            return small()

        def part(kind, cell):
            cells = bits(f"{self.salt}{name}.{kind}", 7, (self.rows, 3, self.side // cell, self.side // cell)) - 64
            return cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)

        return (part("level", self.side) + part("cell", 4) + part("pixel", 1)) / 64

    def fill(self, net, prefix=""):
        return (set_mixed_weights if self.rows else set_weights)(net, prefix)


size = Size()


def bits(name, count, shape):
    """The upper `count` bits of the mixed element index, in float64."""
    h = (np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(fnv1a(name))).astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    h ^= h >> np.uint32(16)
    return torch.from_numpy((h >> np.uint32(32 - count)).astype(np.float64)).reshape(shape)


def set_mixed_weights(net, prefix):
    """Weights that depend on each other in no way: those of `wave` span two dimensions, and sums of them cancel."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            u = (bits(prefix + name, 16, value.shape) - 32767.5) / 32768
            field = name.rsplit(".", 1)[1]
            if field == "num_batches_tracked":
                continue
            if field == "running_var":
                u = 1 + 0.5 * u * u
            elif field == "running_mean" or field == "bias":
                u = 0.1 * u
            elif value.dim() == 1:
                u = 1 + 0.1 * u
            else:
                u = math.sqrt((6.0 if value.dim() == 4 else 1.0) / value[0].numel()) * u
            value.copy_(u)
    return net


def build(name, classes, prefix=""):
    """A network in training mode, filled by formula; `prefix` is `teacher.` for the first teacher."""
    return size.fill(nets.build(name, classes).to(F64), prefix).train()


def teacher(name, classes, number=1, training=False):
    """Teacher `number`, on running statistics and without gradients unless it trains along."""
    net = build(name, classes, prefix_of(number))
    return net if training else net.eval().requires_grad_(False)


def prefix_of(number):
    return "teacher." if number == 1 else f"teacher{number}."


def modules(**parts):
    """A method's modules by name, filled by formula; their parameters are called `method.NAME...`."""
    return size.fill(nn.ModuleDict(parts).to(F64), "method.").train()


def recipe(method, network, teachers, sgd, epochs):
    """TOML text. Values are written as JSON, which TOML reads."""
    def section(head, values):
        return [head] + [f"{k} = {json.dumps(v)}" for k, v in values.items()]

    lines = section("[data]", {"set": "cifar100", "folder": "."}) + section("[network]", {"name": network})
    for name in teachers:
        lines += section("[[teacher]]", {"name": name, "weights": "teacher.safetensors"})
    lines += section("[method]", method) + section("[train]", {"epochs": epochs, "global_batch": 4})
    return "\n".join(lines + section("[optimizer]", {"name": "sgd"} | sgd)) + "\n"


def shapes(state):
    return {k: list(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def rounding(gradient):
    """Whether a gradient is zero in truth and not in numbers: that of a bias before batch norm."""
    return 0 < gradient.abs().max() < 1e-10


def rounded(bits):
    """A hook that rounds what a layer gives to so many bits, its gradient left alone."""
    def hook(layer, given, made):
        last = 2.0 ** (torch.frexp(made.detach())[1].to(F64) - bits)
        return made + ((made / last).round() * last - made).detach()

    return hook


def distance(a, b):
    """As the tests have it: relative, absolute where the reference is 0."""
    off, size = float((a - b).norm()), float(b.norm())
    return off / size if size > 0 else off


def least_above(x):
    """The least of 1, 2, 5 times a power of ten that is not below x."""
    ten = 10.0 ** math.floor(math.log10(x))
    return next(float(f"{m * ten:.0e}") for m in (1, 2, 5, 10) if m * ten >= x)


class Phase:
    """A loss and the parameters it trains. losses() -> ({term: (weight, value)}, {output: tensor}); groups as torch.optim.SGD has them."""

    def __init__(self, losses, params, name=None):
        self.losses, self.params, self.name = losses, params, name


class Case:
    """A student, teachers and modules; `run` takes the steps and writes the file.

    method: the recipe's [method], name first. batch: tensors by the names that `retort step` wants. teachers: [(network, module)].
    ten: whether ten steps on the batch make sense; their losses are stored too.
    watch: names (`student` ones plain, `method.`, `teacher.`) whose gradients and final values are stored, or prefixes of them ending in `*`.
    """

    def __init__(self, name, method, batch, network, student, teachers=(), parts=None, **more):
        self.name, self.method, self.batch, self.network, self.student = name, method, batch, network, student
        self.teachers, self.parts = list(teachers), parts if parts is not None else nn.ModuleDict()
        self.sgd = SGD | more.pop("sgd", {})
        self.steps, self.epoch, self.epochs = more.pop("steps", 1), more.pop("epoch", 0), more.pop("epochs", 10)
        self.watch, self.tolerance = more.pop("watch"), more.pop("tolerance", 1e-9)
        self.ten = more.pop("ten", True)
        self.amplified = {"f32": 20, "bf16": 4} | more.pop("amplified", {})
        self.optimizers = {}
        assert not more, more

    def named(self):
        """Every parameter and buffer under its published name."""
        found = dict(self.student.state_dict(keep_vars=True))
        found |= {f"method.{k}": v for k, v in self.parts.state_dict(keep_vars=True).items()}
        for i, (_, net) in enumerate(self.teachers):
            found |= {prefix_of(i + 1) + k: v for k, v in net.state_dict(keep_vars=True).items()}
        return found

    def watched(self):
        named = self.named()
        for pattern in self.watch:
            names = [k for k in named if k == pattern or pattern.endswith("*") and k.startswith(pattern[:-1])]
            assert names, f"{self.name}: no tensor is called {pattern}"
            yield from ((k, named[k]) for k in names if not k.endswith("num_batches_tracked"))

    def student_and_parts(self):
        return [p for net in (self.student, self.parts) for p in net.parameters() if p.requires_grad]

    def step(self, phases, first):
        """One step; what it computed."""
        out, total = {}, 0.0
        for phase in phases:
            for _, value in self.watched():
                value.grad = None
            sgd = self.optimizers.setdefault(phase, torch.optim.SGD(phase.params, **self.sgd))
            sgd.zero_grad(set_to_none=True)
            terms, outputs = phase.losses()
            weighted = {k: weight * value for k, (weight, value) in terms.items()}
            loss = sum(weighted.values())
            loss.backward()
            total = total + loss.detach()
            out |= {f"loss.{k}": v.detach() for k, v in weighted.items()}
            if first:
                out |= {k: v.detach().clone() for k, v in outputs.items()}
                for k, v in self.watched():
                    if v.grad is not None and self.trained(phase, v) and not rounding(v.grad):
                        key = f"grad.{k}" if f"grad.{k}" not in out else f"grad.{phase.name}.{k}"
                        out[key] = v.grad.clone()
            sgd.step()
        return out | {"loss": total}

    def restart(self, begin):
        self.optimizers = {}
        for k, v in self.named().items():
            v.data.copy_(begin[k])

    def take(self, phases, begin, bits=None):
        """All steps from the beginning; with `bits`, every layer's output rounded to them."""
        self.restart(begin)
        layers = [m for net in (self.student, self.parts, *(t for _, t in self.teachers)) for m in net.modules() if bits]
        hooks = [m.register_forward_hook(rounded(bits)) for m in layers]
        made = {}
        for step in range(self.steps):
            values = self.step(phases, step == 0)
            if self.steps > 1:
                made |= {f"step{step}.{k}": v for k, v in values.items() if k.startswith("loss")}
            if step == 0:
                made |= values
        for hook in hooks:
            hook.remove()
        return made if size.rows else made | {f"after.{k}": v.detach().clone() for k, v in self.watched()}

    def limits(self, phases, begin, made):
        """Tolerances of coarser arithmetic: `amplified` times what rounding after every layer does, in f32 to anything, in bf16 to loss and
        logits. Small batches of deep random networks amplify roundings, formulas do not; sums are rounded too."""
        def worst(bits, names):
            coarse = self.take(phases, begin, bits)
            return max(distance(coarse[k], made[k]) for k in names)

        shown = [k for k in made if k == "loss" or k.startswith(("logits", "teacher.logits"))]
        return {"f32": least_above(self.amplified["f32"] * worst(24, made)), "bf16": least_above(self.amplified["bf16"] * worst(8, shown))}

    def bf16(self, phases, begin, made):
        """How far losses and logits move when every layer's output is rounded to bf16. Sixteen times the rounding of f32 turns no ReLU."""
        fine = self.take(phases, begin, 20)
        turned = max(distance(fine[k], v) for k, v in made.items() if k.startswith("grad"))
        assert turned < 3e-4, f"{self.name}: a ReLU is near its kink, gradients move by {turned:.0e}: another salt"
        coarse = self.take(phases, begin, 8)
        return {k: float(f"{distance(coarse[k], v):.1e}") for k, v in made.items() if "loss" in k or k.startswith(("logits", "teacher.logits"))}

    @staticmethod
    def trained(phase, value):
        groups = [p for group in phase.params for p in (group["params"] if isinstance(group, dict) else [group])]
        return any(p is value for p in groups)

    def run(self, out, losses=None, phases=None, scripts=()):
        """losses(): as a `Phase` has it, for a method of one phase that trains the student and its modules."""
        phases = phases or [Phase(losses, self.student_and_parts())]
        attr = {"recipe": recipe(self.method, self.network, [n for n, _ in self.teachers], self.sgd, self.epochs),
                "weights": shapes(self.student.state_dict()) | {f"method.{k}": s for k, s in shapes(self.parts.state_dict()).items()},
                "teachers": [shapes(net.state_dict()) for _, net in self.teachers], "steps": self.steps, "epoch": self.epoch}
        begin = {k: v.detach().clone() for k, v in self.named().items()}
        made = self.take(phases, begin)
        given = self.batch
        if size.rows:
            attr |= {"rounded": self.bf16(phases, begin, made), "images": {k: list(v.shape) for k, v in given.items() if "image" in k},
                     "salt": size.salt}
            given = {k: v for k, v in given.items() if k not in attr["images"]}
        else:
            attr["limits"] = self.limits(phases, begin, made)
        tensors = {f"in.{k}": v for k, v in given.items()} | {f"out.{k}": v for k, v in made.items()}
        if self.ten and not size.rows:  # steps on the same batch, what is drawn and what the epoch weighs held fast
            self.restart(begin)
            tensors["ten.loss"] = torch.stack([self.step(phases, False)["loss"] for _ in range(10)])
        sources = [__file__, nets.__file__, *scripts]
        print(f"{self.name}: loss {float(made['loss']):.6f}, {attr.get('limits') or attr['rounded']}")
        save(out, f"{size.part}/{self.name}", tensors, attr, self.tolerance, seed_of(self.name), sources)


def main(out):
    import make_comparators
    import make_seeds

    make_seeds.main(out)
    make_comparators.main(out)
