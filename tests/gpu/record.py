"""The record of a part of tests/gpu.sh: python3 record.py check|train|bench OUT. Reads what the part left in OUT (steps, notes, JSON
files) and writes OUT/PART.json and OUT/PART.md. Standard library only."""

import datetime
import json
import pathlib
import statistics
import sys


def read_json(path):
    """Its content; None where it is absent or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def steps(path):
    keys = ("name", "outcome", "seconds", "detail")
    rows = [dict(zip(keys, line.split("\t"))) for line in path.read_text().splitlines()]
    return [row | {"seconds": int(row["seconds"])} for row in rows]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(c).replace("|", "/") for c in row) + " |" for row in rows]


def train(out):
    curves = read_json(out / "train/curves.json")
    if curves is None:
        return {}, ["No curves were compared."]
    rows = []
    for run, c in curves["compared"].items():
        figures = [f"{c[k]:.3g}" if k in c else "-" for k in ("first_step", "first", "smoothed", "last_quarter", "largest", "loss", "loss_cpu")]
        rows.append([run, c["steps"], *figures])
    head = ["run", "steps", "first step", "first 5", "smoothed", "last quarter", "single step", "loss of the last quarter", "CPU's"]
    walls = [[run, seconds] for run, seconds in curves["wall_s"].items()]
    text = ["Largest deviation from the CPU's loss, relative (tests/gpu/curves.py has the bounds):", "", *table(head, rows)]
    return curves, text + ["", *table(["run", "wall s, start and evaluation included"], walls)]


def rates(out, name, who):
    """The JSON files of one side, by round."""
    files = sorted((out / "bench").glob(f"{name}.{who}.[0-9]*.json"))
    return [found for found in map(read_json, files) if found]


def pair(out, name):
    """Both sides of a network: medians over rounds, and the ratio of each round's neighbours."""
    sides = {who: rates(out, name, who) for who in ("retort", "torch")}
    medians = {who: [r["images_per_s"]["median"] for r in found] for who, found in sides.items()}
    result = {"rounds": medians, "records": sides, "profile": read_json(out / "bench" / f"{name}.retort.profile.json")}
    for who, values in medians.items():
        result[f"{who}_images_per_s"] = statistics.median(values) if values else None
    ratios = [a / b for a, b in zip(medians["retort"], medians["torch"]) if b > 0]
    result["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)} if ratios else None
    return result


def kernels(profile, shown=15):
    """The costliest launches, one a row."""
    whole = sum(c["ms"] for c in profile)
    rows = []
    for c in profile[:shown]:
        rate = 1e-6 / max(c["ms"], 1e-9)
        rows.append([f"{c['ms']:.4f}", f"{100 * c['ms'] / whole:.1f}", f"{c['flops'] * rate / 1e3:.1f}", f"{c['bytes'] * rate:.0f}",
                     f"{100 * c['share_of_bound']:.0f}", f"`{c['path']}` {c['op']}", ", ".join(c["kernels"])])
    return table(["ms", "% of step", "TFLOP/s", "GB/s", "% of roofline", "launch", "kernels"], rows)


def show(number):
    return "-" if number is None else f"{number:.1f}"


def bench(out):
    names = sorted({f.name.split(".")[0] for f in (out / "bench").glob("*.json")}) if (out / "bench").is_dir() else []
    found = {name: pair(out, name) for name in names}
    rows, text = [], []
    for name, p in found.items():
        ratio = "-" if p["ratio"] is None else "{median:.2f} ({min:.2f} to {max:.2f})".format(**p["ratio"])
        ours = p["records"]["retort"]
        step, share = (show(ours[0]["step_ms_p50"]), f"{100 * ours[0]['share_of_bound']:.0f} %") if ours else ("-", "-")
        rows.append([name, ours[0]["batch"] if ours else "-", show(p["retort_images_per_s"]), show(p["torch_images_per_s"]), ratio, step, share])
        profile = (p["profile"] or {}).get("profile", [])
        if profile:
            measured = p["profile"]["measured"]
            text += ["", f"## {name}, launch by launch", "", f"Measured on this machine: copy {measured['gbyte_per_s']:.0f} GB/s, matrix product "
                     f"{measured['gflop_per_s'] / 1e3:.0f} TFLOP/s; the roofline is made of these.", "", *kernels(profile)]
    head = ["network", "batch", "images/s", "PyTorch eager", "ratio (range of rounds)", "step ms", "of the counted bound"]
    return found, ["Short protocol: a first look, not a record to be quoted without its range.", "", *table(head, rows), *text]


def main():
    part, out = sys.argv[1], pathlib.Path(sys.argv[2])
    done, notes = steps(out / f"{part}.steps"), (out / f"{part}.notes").read_text().splitlines()
    details, text = {"check": lambda _: ({}, []), "train": train, "bench": bench}[part](out)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    failed = sum(s["outcome"] == "failed" for s in done)
    whole = {"schema": 1, "part": part, "at": now, "failed": failed, "notes": notes, "steps": done, "details": details}
    (out / f"{part}.json").write_text(json.dumps(whole, indent=1) + "\n")
    verdict = f"{failed} of {len(done)} steps failed" if failed else f"all {len(done)} steps passed"
    page = [f"# tests/gpu.sh {part}: {verdict}, {now}", "", *(f"- {n}" for n in notes), "", *text, ""]
    page += table(["step", "outcome", "s", "what it said"], [[s["name"], s["outcome"], s["seconds"], s["detail"]] for s in done])
    (out / f"{part}.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
