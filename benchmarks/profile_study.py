"""Run `dvc repro` and write down how long every stage took: `benchmarks/profile.csv`.

Nothing is written unless every stage ran, so start from an empty cache (a fresh clone).
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    stages: list[tuple[str, float]] = []
    skipped = False
    process = subprocess.Popen(
        ["dvc", "repro"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        # The report is skipped where the notebooks came out as committed: it is kept in git.
        skipped |= line.startswith("Stage '") and not line.startswith("Stage 'report'")
        if found := re.match(r"Running stage '(.+)':", line):
            stages.append((found[1], time.perf_counter()))
    end = time.perf_counter()
    if process.wait() or skipped or not stages:
        print("no profile written: not every stage ran", file=sys.stderr)
        return process.returncode
    times = [
        stop - start
        for (_, start), stop in zip(stages, [*[t for _, t in stages[1:]], end], strict=True)
    ]
    with open(Path(__file__).parent / "profile.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["stage", "seconds", "share"])
        for (name, _), seconds in zip(stages, times, strict=True):
            writer.writerow([name, round(seconds, 1), round(seconds / sum(times), 3)])
        writer.writerow(["total", round(sum(times), 1), 1.0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
