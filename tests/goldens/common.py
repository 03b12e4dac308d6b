"""What the golden scripts share: writing files, the weight formula, seeds and small tensor helpers."""

import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
MAX_BYTES = 100_000
F64 = torch.float64
DTYPES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8"}
WRITTEN = []  # every path of this run, so that make.py can name stale files

sys.path.insert(0, str(HERE.parent.parent / "benches" / "peers"))
torch.set_num_threads(1)  # sums in one order
torch.backends.mkldnn.enabled = False


def script_hash(*scripts):
    """First 16 hex digits of the SHA-256 of the scripts that made a file."""
    digest = hashlib.sha256()
    for script in scripts:
        digest.update(Path(script).read_bytes())
    return digest.hexdigest()[:16]


def save(out, name, tensors, attr, tolerance, seed, scripts):
    """Writes out/NAME.safetensors: the same tensors give the same bytes (wider types first, then by name; no gaps).

    attr: JSON-able attributes of the case, stored as JSON text under the key "attr". tolerance: relative, of norm(a - b) / norm(b).
    """
    arrays = {k: np.array(v.detach().numpy(), order="C") for k, v in tensors.items()}
    order = sorted(arrays, key=lambda k: (-arrays[k].dtype.itemsize, k))
    header = {"__metadata__": {
        "attr": json.dumps(attr, sort_keys=True),
        "script_hash": script_hash(HERE / "common.py", *scripts),
        "seed": str(seed),
        "tolerance": f"{tolerance:g}",
        "torch": torch.__version__.split("+")[0],
    }}
    offset, blob = 0, b""
    for k in order:
        a = arrays[k]
        if a.dtype.kind == "f":
            assert np.isfinite(a).all(), f"{name}: {k} is not finite"
        header[k] = {"dtype": DTYPES[a.dtype.name], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        blob += a.tobytes()
        offset += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(out) / f"{name}.safetensors"
    size = 8 + len(text) + len(blob)
    assert size <= MAX_BYTES, f"{name}: {size} bytes, limit {MAX_BYTES}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)
    WRITTEN.append(path)


def fnv1a(text):
    """FNV-1a, 32 bits, of the UTF-8 bytes."""
    h = 0x811C9DC5
    for byte in text.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def wave(name, shape):
    """sin(0.37 (i mod 10007) + fnv1a(name) mod 1000) in float64, i the row-major element index."""
    n = int(np.prod(shape, dtype=np.int64))
    phase = float(fnv1a(name) % 1000)
    return torch.from_numpy(np.sin(0.37 * (np.arange(n) % 10007).astype(np.float64) + phase)).reshape(shape)


def set_weights(net, prefix=""):
    """Fills a network by the weight formula of README.md; `prefix` goes before each published name when it is hashed."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            u = wave(prefix + name, value.shape)
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
                u = (2.0 / value[0].numel()) ** 0.5 * u
            value.copy_(u)
    return net


class Draw:
    """Seeded values in float64."""

    def __init__(self, seed):
        self.seed, self.rng = seed, torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.rng, dtype=F64)

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.rng, dtype=F64)

    def ints(self, high, *shape, dtype=torch.int32):
        return torch.randint(0, high, shape, generator=self.rng).to(dtype)


def seed_of(name):
    """The seed of a case: its name's hash, so that adding a case moves no other."""
    return fnv1a(name) % 100_000


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def krsc(w):
    """Our filter layout from torch's KCRS; `kcrs` goes back."""
    return w.permute(0, 2, 3, 1)


def kcrs(w):
    return w.permute(0, 3, 1, 2)
