"""Lays the loss curves of short trainings on a GPU over the CPU's: python3 curves.py FOLDER.

FOLDER holds the run folders cpu-f32, cuda-f32 and cuda-bf16, of the same recipe and seed, logged at every step. The first loss must agree
closely, later ones less: rounding differs, and training amplifies it. So four figures a curve, with a bound each: the deviation of the
first step, the largest of the first 5, of the mean over 20 steps wherever they lie, and that of the mean of the last quarter; all
relative to the CPU's loss. On the CPU itself f64 differs from f32 by 6e-8, 9e-4 and 0.035 (first 60 steps of the quickstart), bf16 by
1e-5, 4e-3, 0.033 and 0.017 (300 steps), 2026-11-26. Writes FOLDER/curves.json; the exit code is 1 if a bound is passed.
"""

import json
import pathlib
import sys

FIRST, SMOOTH = 5, 20
FIGURES = ("first_step", "first", "smoothed", "last_quarter")
BOUNDS = {"cuda-f32": (1e-5, 5e-3, 0.10, 0.06), "cuda-bf16": (5e-3, 0.03, 0.12, 0.08)}


def losses(run):
    """{step: loss}, whole lines only."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "step":
            found[entry["step"]] = entry["loss"]
    return found


def mean(values):
    return sum(values) / len(values)


def smooth(values):
    width = min(SMOOTH, len(values))
    return [mean(values[i : i + width]) for i in range(len(values) - width + 1)]


def deviation(got, expected):
    """The largest, relative to the expected value; infinite where a loss is no number."""
    if any(g is None or e is None or g != g for g, e in zip(got, expected)):
        return float("inf")
    return max(abs(g - e) / max(abs(e), 1e-9) for g, e in zip(got, expected))


def compare(got, expected):
    steps = sorted(set(got) & set(expected))
    if not steps:
        return {"steps": 0}
    g, e = ([curve[s] for s in steps] for curve in (got, expected))
    if deviation(g, e) == float("inf"):
        return {"steps": len(steps), "not_finite": True}
    quarter = max(1, len(steps) // 4)
    return {"steps": len(steps), "first_step": deviation(g[:1], e[:1]), "first": deviation(g[:FIRST], e[:FIRST]), "largest": deviation(g, e),
            "smoothed": deviation(smooth(g), smooth(e)), "last_quarter": deviation([mean(g[-quarter:])], [mean(e[-quarter:])]),
            "loss": mean(g[-quarter:]), "loss_cpu": mean(e[-quarter:])}


def main():
    folder = pathlib.Path(sys.argv[1])
    expected = losses(folder / "cpu-f32")
    result, wrong = {"curves": {"cpu-f32": expected}, "compared": {}, "wall_s": {}}, []
    for run in ("cpu-f32", *BOUNDS):
        if (folder / run / "wall.json").exists():
            result["wall_s"][run] = json.loads((folder / run / "wall.json").read_text())["wall_s"]
    for run, bounds in BOUNDS.items():
        if not (folder / run / "metrics.jsonl").exists():
            wrong.append(f"{run}: it has no metrics.jsonl")
            continue
        curve = losses(folder / run)
        result["curves"][run] = curve
        figures = result["compared"][run] = compare(curve, expected)
        if figures["steps"] != len(expected) or not expected or "not_finite" in figures:
            wrong.append(f"{run}: {figures['steps']} steps in common of {len(expected)}, or a loss is no number")
            continue
        print(f"{run}: {figures['steps']} steps; deviation of the first {figures['first_step']:.1e}, of {FIRST} {figures['first']:.1e}, smoothed {figures['smoothed']:.4f}, "
              f"last quarter {figures['last_quarter']:.4f} (loss {figures['loss']:.4f}, CPU {figures['loss_cpu']:.4f})")
        for name, bound in zip(FIGURES, bounds):
            if figures[name] > bound:
                wrong.append(f"{run}: {name} deviates by {figures[name]:.3g}, at most {bound}")
    result["faults"] = wrong
    (folder / "curves.json").write_text(json.dumps(result) + "\n")
    if wrong:
        sys.exit("Error: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
