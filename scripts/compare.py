#!/usr/bin/env python3
"""Times crosstune and another program in turn, pair by pair, and prints the ratio of their medians.

  python3 scripts/compare.py --theirs "python3 ../shared/tools/bench_torch.py" --pairs 5 \
      train --size base --batch 32 --threads 2

Likewise "vit --size vit-b32 --batch 32 --threads 2": pictures through a vision tower.

Everything after the options goes to both sides, which print one line of JSON each. In turn, because
a shared machine changes speed by the minute: a pair sees the same weather. Needs nothing but Python.
"""
import argparse
import json
import shlex
import statistics
import subprocess

OURS = "cargo run --quiet --release --example bench_step --"


def once(command, task):
    out = subprocess.run(shlex.split(command) + task, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", required=True, help="command of the other side")
    parser.add_argument("--ours", default=OURS)
    parser.add_argument("--pairs", type=int, default=5)
    args, task = parser.parse_known_args()
    subprocess.run(["cargo", "build", "--quiet", "--release", "--example", "bench_step"], check=True)
    print("pair    ours s  theirs s   ratio   others' cores (ours, theirs)")
    wall, foreign, memory = ([], []), ([], []), ([], [])
    for pair in range(args.pairs):
        for side, command in enumerate((args.ours, args.theirs)):
            run = once(command, task)
            wall[side].append(run["median_s"])
            foreign[side].append(run["median_foreign_cores"])
            memory[side].append(run["peak_rss_gib"])
        ours, theirs = wall[0][-1], wall[1][-1]
        print(f"{pair + 1:4} {ours:9.3f} {theirs:9.3f} {theirs / ours:7.2f}   {foreign[0][-1]:.2f}, {foreign[1][-1]:.2f}", flush=True)
    ours, theirs = map(statistics.median, wall)
    ratios = sorted(t / o for o, t in zip(*wall))
    print(f"median of medians: {ours:.3f} s against {theirs:.3f} s, ratio {theirs / ours:.2f}; pairs {ratios[0]:.2f} to {ratios[-1]:.2f}; "
          f"peak {max(memory[0]):.2f} GiB against {min(memory[1]):.2f} GiB, ratio {max(memory[0]) / min(memory[1]):.2f}")


if __name__ == "__main__":
    main()
