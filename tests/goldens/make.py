"""Writes every golden, or checks that the files present are what the scripts make.

    python make.py [ops|losses|nets|steps|views|methods|bf16 ...] write
    python make.py --check [...]                    write elsewhere and compare values; exit 1 if they differ

Needs torch, torchvision and Pillow (versions in README.md), numpy and safetensors. Files of a part that the scripts no longer make are named, not deleted.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from common import HERE, WRITTEN

PARTS = ("ops", "losses", "nets", "steps", "views", "methods", "bf16")


def differences(made, kept):
    """What of two files differs: names, metadata, or values by more than a few roundings."""
    import numpy as np
    from safetensors import safe_open

    with safe_open(made, "np") as a, safe_open(kept, "np") as b:
        if sorted(a.keys()) != sorted(b.keys()):
            yield "names differ"
            return
        ours, theirs = dict(a.metadata()), dict(b.metadata())
        yield from (f"{k} is {theirs.get(k)}, expected {ours[k]}" for k in ours if ours[k] != theirs.get(k))
        tolerance = max(float(ours["tolerance"]), 1e-13)
        for name in a.keys():
            x, y = a.get_tensor(name), b.get_tensor(name)
            if x.shape != y.shape or x.dtype != y.dtype or np.linalg.norm((x - y).ravel().astype(float)) > tolerance * np.linalg.norm(x.ravel().astype(float)):
                yield f"{name} differs"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--check", action="store_true", help="compare with the files present, change nothing")
    args = parser.parse_args()
    parts = args.parts or PARTS
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) if args.check else HERE
        for part in parts:
            importlib.import_module(f"make_{part}").main(out)
        for path in WRITTEN if args.check else []:
            kept = HERE / path.relative_to(out)
            if not kept.exists():
                found = ["missing"]
            elif path.read_bytes() == kept.read_bytes():
                found = []
            else:
                found = list(differences(path, kept)) if path.suffix == ".safetensors" else ["differs"]
            wrong += bool(found)
            for line in found:
                print(f"{kept.relative_to(HERE)}: {line}")
        names = {path.relative_to(out) for path in WRITTEN}
    stale = [p for part in parts for p in (HERE / part).glob("*") if p.relative_to(HERE) not in names]
    for path in stale:
        print(f"{path.relative_to(HERE)}: no script makes it")
    print(f"{len(WRITTEN)} files, {wrong} wrong, {len(stale)} stale")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
