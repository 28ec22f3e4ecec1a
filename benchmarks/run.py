"""`make bench`: every speed the documentation speaks of, as a ratio measured side by side.

Writes `benchmarks/results.csv`, `benchmarks/scaling.csv`, the figure of the latter, and the table of
`benchmarks/README.md` (see `tables.py`). Run it on a machine that does nothing else.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import pandas as pd
import torch

from benchmarks import density, embedding, networks, scaling, tables, training

HERE = Path(__file__).parent
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "facenet-pytorch", "faiss-cpu", "pykeops")


def machine() -> str:
    """Processor, threads and versions."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    name = found[1] if found else platform.processor()
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{name}, {torch.get_num_threads()} threads, {device}; Python {platform.python_version()}, "
        + ", ".join(versions)
    )


def figure(costs: pd.DataFrame) -> None:
    plt.rcParams.update({"svg.hashsalt": "cid", "svg.fonttype": "none", "font.size": 9})
    groups = costs.groupby("varied", sort=False)
    drawn, axes = plt.subplots(1, len(groups), figsize=(9, 2.4), layout="constrained", sharey=True)
    for axis, (name, rows) in zip(axes, groups, strict=True):
        axis.loglog(rows["value"], rows["cost"], "o-", color="#0072b2", base=2)
        base = rows.loc[rows["cost"] == 1, "value"].iloc[0]
        axis.loglog(
            rows["value"], rows["value"] / base, ":", color="0.5", base=2, label="in proportion"
        )
        axis.set_xticks(rows["value"], [f"{v:g}" for v in rows["value"]])
        axis.minorticks_off()
        axis.set_xlabel({"images": "images a person"}.get(name, name))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("cost, base = 1")
    axes[0].set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes[0].legend(frameon=False)
    drawn.savefig(HERE / "scaling.svg", metadata={"Date": None})


def main() -> None:
    rounds = 3
    start = time.perf_counter()
    rows = []
    for part in (density, training, embedding, networks):
        print(f"{time.perf_counter() - start:5.0f} s  {part.__name__}", file=sys.stderr, flush=True)
        rows += part.measure(rounds)
    print(f"{time.perf_counter() - start:5.0f} s  scaling", file=sys.stderr, flush=True)
    costs = pd.DataFrame(scaling.measure())
    results = pd.DataFrame(rows)
    results.to_csv(HERE / "results.csv", index=False, float_format="%.4g")
    costs.to_csv(HERE / "scaling.csv", index=False, float_format="%.3g")
    figure(costs)
    near = density.approximations()
    near.to_csv(HERE / "approximations.csv", index=False, float_format="%.4g")
    (HERE / "machine.txt").write_text(machine() + "\n")
    print(tables.write())
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
