"""Goldens whose batch norms see enough images for bf16: bf16/NAME.safetensors, one case of every method in float64.

Cases and formulas are those of make_seeds.py and make_comparators.py at another size: 24 images of 16 x 16, which, as the weights, come
from the formulas of README.md's section bf16 and are not stored. A case's salt is the first whose values keep off the kinks of ReLU.
"""

import make_comparators as comparators
import make_seeds as seeds
from make_comparators import Run
from make_losses import ce
from make_methods import Size, size

ROWS, SIDE = 24, 16


def plain(out):
    r = Run("ce")

    def losses():
        z = r.student(r.image)
        return {"ce": (1.0, ce(z, r.label))}, r.outputs(z)

    r.save(out, losses, {"name": "ce"}, steps=2)


# What makes a case, its arguments, its settings, its salt.
CASES = [
    (plain, (), {}, "a"),
    (seeds.patch_swap, ("ips",), {}, "b"),
    (seeds.patch_swap, ("ips_originals",), {"feed_originals": True, "bn_groups": "split"}, "a"),
    (seeds.mixskd, ("mixskd",), {}, "d"),
    (seeds.atsc, ("atsc",), {"ce_weight": 0.5, "kd_weight": 0.3}, "a"),
    (seeds.crld, ("crld",), {}, "b"),
    (seeds.pll, ("pll", "resnet8"), {"targets": "soft"}, "a"),
    (comparators.kd, (), {}, "a"),
    (comparators.dkd, ("dkd", 30, 1.0), {}, "a"),
    (comparators.cs_kd, (), {}, "a"),
    (comparators.ps_kd, ("ps_kd", 5), {}, "a"),
    (comparators.dlb, ("dlb", ROWS), {}, "a"),
    (seeds.simkd, ("simkd",), {}, "a"),
    (comparators.tf_kd_self, (), {}, "a"),
    (comparators.tf_kd_reg, (), {}, "a"),
    (comparators.bake, ("bake", ROWS // 2, 1, 0.9), {}, "a"),
    (comparators.normkd, (), {}, "a"),
    (comparators.dist, (), {}, "a"),
    (comparators.byot, (), {}, "a"),
    (comparators.mixed_images, (), {}, "a"),
    (comparators.painted_images, (), {}, "a"),
]


def main(out):
    size.part, size.side, size.rows = "bf16", SIDE, ROWS
    for make, arguments, settings, size.salt in CASES:
        make(out, *arguments, **settings)
    size.part, size.side, size.rows, size.salt = Size.part, Size.side, Size.rows, Size.salt
