#!/usr/bin/env python3
"""Turns what a visit to a GPU machine brought back into docs/gpu.md.

  python3 scripts/visit_summary.py FOLDER                     prints it
  python3 scripts/visit_summary.py FOLDER --write docs/gpu.md

What did not run on a GPU is never written: a dry run is printed, under a heading that says so.
"""
import argparse
import json
import pathlib
import sys

HOW = "## How to visit"


def how(path):
    """The section of the file that says how, which stays."""
    text = path.read_text() if path and path.is_file() else ""
    return HOW + text.split(HOW)[1].split("\n## ")[0].rstrip() + "\n\n" if HOW in text else ""


def read(folder, name):
    path = folder / name
    return path.read_text() if path.is_file() else ""


def card(doctor, driver):
    """The card's line, or None where the run was on none."""
    name = (doctor.get("device") or {}).get("name", "")
    gpus = [g for g in doctor["cuda"]["gpus"] if name.startswith(g["name"])]
    if not gpus or "NVRM" not in driver:
        return None
    gpu = gpus[0]
    return f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_bytes'] / 2**30:.0f} GiB"


def steps_table(text):
    rows = ["| step | result | seconds |", "|---|---|---|"]
    rows += [f"| {' | '.join(line.split(chr(9)))} |" for line in text.splitlines()]
    return rows


def profile_table(profile, steps):
    """Of one step: the profile holds sums over that many."""
    def row(line):
        share = line["of_ceiling"]
        model = line["predicted_seconds"]
        cells = [
            line["phase"], line["op"], f"{line['calls'] / steps:g}", f"{line['seconds'] / steps * 1e3:.2f}",
            f"{line['share'] * 100:.1f}", "" if share is None else f"{share * 100:.0f}",
            "" if model is None else f"{model / steps * 1e3:.2f}",
        ]
        return f"| {' | '.join(map(str, cells))} |"

    head = ["| phase | op | nodes | ms | % | % of ceiling | model, ms |", "|---|---|---|---|---|---|---|"]
    return head + [row(line) for line in profile["ops"][:15]]


def compare_table(lines):
    rows = ["| program | size | items | ms a step | real tokens/s |", "|---|---|---|---|---|"]
    for run in lines:
        program = run.get("program", "crosstune")
        rows.append(f"| {program} | {run['size']} | {run['batch']} | {run['median_s'] * 1e3:.2f} | {run['real_tokens_per_s']:.0f} |")
    return rows


def body(folder):
    out = ["## What ran", *steps_table(read(folder, "steps.tsv")), ""]
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*.json"))]
    runs.sort(key=lambda run: run["batch"])
    compare = [run for run in runs if not run.get("profiled")]
    if compare:
        out += ["## Training steps", "Captured and replayed, LoRA of rank 8, random weights; real tokens, without padding.", ""]
        out += [*compare_table(compare), ""]
    profile = read(folder, "profile.json")
    profiled = next((run for run in runs if run.get("profiled")), None)
    if profile and profiled:
        profile = json.loads(profile)
        rates = profile["ceilings"]
        ceilings = f"; ceilings of the same run: {rates['copy'] / 1e9:.1f} GB/s and {rates['product'] / 1e12:.2f} TFLOP/s" if rates else ""
        out += ["## Where a step's time goes"]
        out += [f"{profiled['size']}, {profiled['batch']} items; mean of {profiled['runs']} steps, launched node by node between events{ceilings}.", ""]
        out += [*profile_table(profile, profiled["runs"]), ""]
    ops = read(folder, "ops.txt").strip()
    if ops:
        out += ["## Every op", "```", ops, "```", ""]
    if read(folder, "ncu.txt"):
        out += ["ncu's report on the slowest op's kernels came back too (ncu.txt, not kept here).", ""]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    doctor_text = read(args.folder, "doctor.json")
    if not doctor_text:
        sys.exit(f"{args.folder}: has no doctor.json: the visit's first step did not pass, so nothing ran on a GPU")
    date, driver, commit = (read(args.folder, "visit.txt").splitlines() + ["unknown"] * 3)[:3]
    name = card(json.loads(doctor_text), driver)
    profile = read(args.folder, "profile.json")
    if profile and json.loads(profile)["virtual_machine"]:
        name = None
    lines = body(args.folder)
    if name is None:
        print("# Dry run: nothing of this ran on a GPU\n")
        print("\n".join(lines))
        if args.write:
            sys.exit(f"{args.write} was left as it is: this run was on no GPU")
        return
    head = ["# On a GPU", "", f"Card: {name}. Driver: {driver}. Date: {date}. Commit: {commit}.", ""]
    text = "\n".join(head) + "\n" + how(args.write) + "\n".join(lines)
    if args.write:
        args.write.write_text(text)
        print(f"wrote {args.write}")
    else:
        print(text)


if __name__ == "__main__":
    main()
