"""Goldens of the strong view's 8-bit operators, made with Pillow: views/OPERATOR.safetensors, views/rectangle.safetensors, and the
images that all of them share, views/images.safetensors.

An operator's file holds `in.magnitude` f64 [m] and whole results `out.IMAGE` u8 [m,h,w,3], then `in.more` f64 [n] and CRC-32 of the bytes
of the results, `crc.IMAGE` i64 [n]. The images `large` and `long` are not stored: `odd` repeated over their size.
`rectangle` holds `in.draw` f64 [n,3] (side as a share of the width, centre x and y), for each stored image `box.IMAGE` f64 [n,4] (x0, y0,
x1, y1 by the rule of the cutout) and `crc.IMAGE`, and whole results `out.noise` of the first eight.
"""

import math
import zlib

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps, __version__

from common import save, seed_of

PILLOW = "13.0.0"
FILL = (125, 123, 114)
LARGE = {"large": (224, 224), "long": (187, 225)}


def affine(*matrix):
    return lambda image, v: image.transform(image.size, Image.Transform.AFFINE, [m(image, v) if callable(m) else m for m in matrix])


def shear(image, v):
    return v


# name: smallest and largest magnitude, the operator
OPERATORS = {
    "auto_contrast": (0, 1, lambda image, v: ImageOps.autocontrast(image)),
    "brightness": (0.05, 0.95, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    "colour": (0.05, 0.95, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    "contrast": (0.05, 0.95, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    "equalise": (0, 1, lambda image, v: ImageOps.equalize(image)),
    "identity": (0, 1, lambda image, v: image),
    "posterise": (4, 8, lambda image, v: ImageOps.posterize(image, max(1, int(v)))),
    "rotate": (-30, 30, lambda image, v: image.rotate(v)),
    "sharpness": (0.05, 0.95, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    "shear_x": (-0.3, 0.3, affine(1, shear, 0, 0, 1, 0)),
    "shear_y": (-0.3, 0.3, affine(1, 0, 0, shear, 1, 0)),
    "solarise": (0, 256, lambda image, v: ImageOps.solarize(image, v)),
    "translate_x": (-0.3, 0.3, affine(1, 0, lambda image, v: v * image.width, 0, 1, 0)),
    "translate_y": (-0.3, 0.3, affine(1, 0, 0, 0, 1, lambda image, v: v * image.height)),
}


def images():
    """Noise, a smooth picture of little contrast, odd and long sizes, two values, one value, and images without an inside."""
    rng = np.random.default_rng(seed_of("views"))
    y, x, c = np.mgrid[:32, :32, :3]
    smooth = 90 + 40 * np.sin(0.11 * x + c) * np.cos(0.07 * y - c) + 0.8 * y
    sparse = (rng.random((23, 17, 3)) ** 3 * 200 + 30)
    return {name: np.ascontiguousarray(pixels).astype(np.uint8) for name, pixels in {
        "noise": rng.integers(0, 256, (32, 32, 3)),
        "smooth": smooth,
        "odd": sparse,
        "two": np.where(rng.random((7, 40, 3)) < 0.3, 12, 200),
        "one": np.full((5, 6, 3), (7, 130, 251)),
        "flat": rng.integers(0, 256, (2, 5, 3)),
        "thin": rng.integers(0, 256, (5, 2, 3)),
        "dot": rng.integers(0, 256, (1, 1, 3)),
        "line": rng.integers(0, 256, (6, 1, 3)),
    }.items()}


def tiled(pixels, size):
    rows, columns = (np.arange(n) % m for n, m in zip(size, pixels.shape))
    return pixels[rows][:, columns]


def magnitudes(name, low, high):
    """Few, stored whole; and many: bounds, roundings at the edge, shifts beside half a pixel, then random ones."""
    few = np.linspace(low, high, 5)
    if name in ("auto_contrast", "equalise", "identity"):
        return few[:1], few[:1]
    edges = [low, high, (low + high) / 2]
    if high == 0.95:
        edges += [0, 1, 0.1, 0.2, 0.3, 1 / 3, 0.5, 2 / 3, 0.7, 0.9, math.nextafter(0.95, 0)]
    if name.startswith(("translate", "shear")):
        edges += [(k + 0.5 + e) / n for n in (17, 23, 32, 40, 224) for k in (-2, 0, 1) for e in (0, -1e-7, 1e-7, -1e-14) if abs((k + 0.5) / n) < 0.3]
    if name == "solarise":
        edges += [0.5, 12, 12.5, 127.999, 128, 200, 255, 255.5]
    if name == "posterise":
        edges += [0.3, 1, 2, 3, 5, 6, 7, 7.999]
    if name == "rotate":
        edges += [15, -15, 10, -10, 5, 1, -1, 0.1, 22.5, 1e-9, -1e-9]
    rng = np.random.default_rng(seed_of(name))
    return few, np.concatenate([edges, rng.uniform(low, high, 100)])


def run(operator, pixels, v):
    return np.asarray(operator(Image.fromarray(pixels), float(v)))


def crc(pixels):
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes())


def cutout_box(share, cx, cy, height, width):
    """The rule of the strong view: a square that the left and upper edges shift and the others cut; both ends belong to it."""
    s = share * width
    x0, y0 = int(max(0, cx - s / 2)), int(max(0, cy - s / 2))
    return x0, y0, min(width, x0 + s), min(height, y0 + s)


def filled(pixels, box):
    image = Image.fromarray(pixels).copy()
    ImageDraw.Draw(image).rectangle(box, FILL)
    return np.asarray(image)


def rectangles(pictures):
    """`in.draw` holds share, cx / width, cy / height in the file's units: cx and cy are scaled to each image."""
    rng = np.random.default_rng(seed_of("rectangle"))
    draws = [(0.25, 0.0, 31.9 / 32), (0.001, 0.4, 0.6), (0.5 - 1e-9, 1, 1), (0.49, 0.02, 0.03), (1e-15, 1, 1)]
    draws = np.array(draws + [(0.5 * a, b, c) for a, b, c in rng.random((120, 3))])
    tensors = {"in.draw": draws}
    for name, pixels in pictures.items():
        height, width = pixels.shape[:2]
        boxes = [cutout_box(a, b * width, c * height, height, width) for a, b, c in draws]
        tensors[f"box.{name}"] = np.array(boxes, float)
        tensors[f"crc.{name}"] = np.array([crc(filled(pixels, box)) for box in boxes])
        if name == "noise":
            tensors["out.noise"] = np.stack([filled(pixels, box) for box in boxes[:8]])
    return tensors


def main(out):
    assert __version__ == PILLOW, f"Pillow {__version__}, expected {PILLOW}"
    pictures = images()

    def write(name, tensors, **attr):
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
        save(out / "views", name, tensors, {"pillow": PILLOW, **attr}, 0, seed_of(name), [__file__])

    write("images", {f"in.{name}": pixels for name, pixels in pictures.items()})
    write("rectangle", rectangles(pictures), fill=FILL)
    large = {name: tiled(pictures["odd"], size) for name, size in LARGE.items()}
    for name, (low, high, operator) in OPERATORS.items():
        few, more = magnitudes(name, low, high)
        tensors = {"in.magnitude": few, "in.more": more}
        for key in ("noise", "smooth", "odd"):
            tensors[f"out.{key}"] = np.stack([run(operator, pictures[key], v) for v in few])
        for key, pixels in {**pictures, **large}.items():
            tensors[f"crc.{key}"] = np.array([crc(run(operator, pixels, v)) for v in more])
        write(name, tensors, large={k: list(v) for k, v in LARGE.items()}, range=[low, high])
