"""Weights and a batch for `retort step`, made up: retort step RECIPE --describe --json | python3 step_files.py FOLDER UNITS

Writes FOLDER/weights.safetensors and FOLDER/batch.safetensors for a recipe without teachers and draws. Weights are uniform with the
variance 2 / fan-in that keeps activations in range, of a table that is used again and again. Standard library only.
"""

import array
import json
import math
import pathlib
import random
import struct
import sys

TABLE = 65_521  # a prime, so that rows of weights do not repeat
GENERATOR = random.Random(0)
UNIFORM = [GENERATOR.uniform(-1, 1) for _ in range(TABLE)]
CLASSES = 10  # every recipe has as many


def fill(count, scale):
    """`count` floats in +-scale."""
    table = array.array("f", (scale * u for u in UNIFORM[: min(count, TABLE)]))
    return (table * (count // len(table) + 1))[:count]


def values(name, shape):
    count = math.prod(shape)
    if name.endswith(".running_var") or (len(shape) == 1 and name.endswith(".weight")):
        return array.array("f", [1.0]) * count
    if name.endswith((".bias", ".running_mean")):
        return array.array("f", [0.0]) * count
    return fill(count, 1.0 if name.startswith("image") else math.sqrt(6 / math.prod(shape[1:])))


def save(path, tensors):
    """safetensors: length of a JSON header, header, bytes."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        size = len(data) * data.itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data.tobytes())


def main():
    folder, units = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    wanted = json.load(sys.stdin)
    for kind in ("weights", "batch"):
        tensors = {}
        for tensor in wanted[kind]:
            name, shape = tensor["name"], [units if d == "n" else int(d) for d in tensor["shape"]]
            if tensor["dtype"] == "int":
                data = array.array("i", (i * 7 % CLASSES for i in range(math.prod(shape))))
                tensors[name] = ("I32", shape, data)
            else:
                tensors[name] = ("F32", shape, values(name, shape))
        save(folder / f"{kind}.safetensors", tensors)


if __name__ == "__main__":
    main()
