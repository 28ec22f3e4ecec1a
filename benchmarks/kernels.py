"""How far the numbers of a kept study move on another kind of processor: `benchmarks/kernels.csv`.

    python -m benchmarks.kernels NAME                   adds it; data/ holds its data set
    python -m benchmarks.kernels NAME --first weights   the same with the embeddings of build/, which stay
    python -m benchmarks.kernels NAME --against threads one thread against as many as there are cores

The stages that decide verdicts run twice, each time in a folder of its own and with nothing kept: as every
library chooses for this processor, and as it does for an old one (:data:`PLAIN`), which sums in another
order; or on one thread (:data:`ONE_THREAD`). Numbers are compared as they are written, as shares of half their interval
(:func:`study.results.rounding.moved`); most are written with a hundredth of it as their last digit, some
with a twentieth. ``beyond`` counts those that moved by more than :data:`study.results.rounding.MOVES`.
``turned`` counts other verdicts, ``unsaid`` those among them whose entry does not say that it is on the
border of the other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from study.pipeline import kept, reproduced
from study.pipeline.study import check
from study.results.rounding import MOVES, moved

TABLE = Path(__file__).with_name("kernels.csv")
STAGES = ("embed", "weights", "train", "evaluate")
# Every library computes as on a processor of 2008: torch, its MKL and oneDNN, OpenBLAS and NumPy.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
AGAINST = {"kernels": PLAIN, "threads": ONE_THREAD}
COUNTS = {"beyond": "Int64", "turned": "Int64", "unsaid": "Int64"}  # not of every row
RUN = """
import sys
from study.pipeline import notebook, params, stages
for stage in sys.argv[1:]:
    code = stages.code_of(stages.notebook_of(stage))
    exec(code, notebook.stage_parameters(stage, params.load()))
"""


def copy_of(repository: Path, folder: Path, name: str) -> None:
    """Put the code, the data and the earlier stages of a kept study into an empty folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for file in filter(None, listed.split("\0")):
        if not file.startswith(("reports/", "remote/")) and (repository / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, folder / file)
    (folder / "data").symlink_to((repository / "data").resolve())
    left_out = shutil.ignore_patterns("runs", "paper", "report", "notebooks")
    shutil.copytree(repository / "build", folder / "build", ignore=left_out)
    (folder / "params.yaml").write_text(kept.text(name))


def compute(folder: Path, stages: tuple[str, ...], kernel: dict[str, str]) -> None:
    """Run stages in a folder, under the variables that decide what the libraries compute with."""
    decided = PLAIN | ONE_THREAD
    chosen = {name: value for name, value in os.environ.items() if name not in decided}
    variables = chosen | {"PYTHONPATH": str(folder)} | kernel
    command = [sys.executable, "-c", RUN, *stages]
    subprocess.run(command, cwd=folder, env=variables, check=True)


def compare(one: Path, other: Path) -> pd.DataFrame:
    """How the embeddings, tables and verdicts of a study differ from those in another folder.

    A row for the embeddings, with the shares replaced by the largest change of a coordinate; a row for each table with intervals: ``table``, ``numbers``, ``median``, ``p99`` and ``largest`` share of
    half an interval, and how many are ``beyond`` :data:`MOVES`; and one for the verdicts, with ``numbers``,
    ``turned`` and ``unsaid``.
    """
    proxies = [np.load(folder / "build/embed/proxy.npy") for folder in (one, other)]
    of_photo = pd.Series(np.abs(proxies[0] - proxies[1]).max(axis=1))
    rows = [_spread("embeddings", of_photo)]
    written = one / "build/evaluate"
    again = other / "build/evaluate"
    for file in sorted(written.glob("*.csv")):
        shares = moved(pd.read_csv(file), pd.read_csv(again / file.name)).stack()
        if len(shares):
            rows.append(_spread(file.stem, shares) | {"beyond": (shares > MOVES).sum()})
    ours, theirs = (_by_claim(folder / "claims.json") for folder in (written, again))
    turned = [key for key in ours if ours[key]["verdict"] != theirs[key]["verdict"]]
    unsaid = [key for key in turned if not _says(ours[key], theirs[key])]
    rows.append(
        {
            "table": "verdicts",
            "numbers": len(ours),
            "turned": len(turned),
            "unsaid": len(unsaid),
        }
    )
    for key in turned:
        border = "unsaid" if key in unsaid else "on the border"
        print(*key, ours[key]["verdict"], "->", theirs[key]["verdict"], f"({border})")
    return pd.DataFrame(rows).astype(COUNTS)


def _spread(name: str, changes: pd.Series) -> dict:
    return {
        "table": name,
        "numbers": len(changes),
        "median": changes.median(),
        "p99": changes.quantile(0.99),
        "largest": changes.max(),
    }


def _by_claim(path: Path) -> dict[tuple, dict]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {tuple(entry[key] for key in reproduced.CLAIM): entry for entry in entries}


def _says(one: dict, other: dict) -> bool:
    """Whether one of two entries says that it is on the border of the other's verdict."""
    near = one.get("border", [])
    near_other = other.get("border", [])
    return other["verdict"] in near or one["verdict"] in near_other


def processor() -> str:
    """The kind of processor, and the widest instructions that torch uses on it."""
    import torch

    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    return f"{found[1] if found else 'unknown'}, {torch.backends.cpu.get_cpu_capability()}"


def measure(name: str, first: str, against: str = "kernels") -> pd.DataFrame:
    """Rows of the table: a kept study from its stage ``first`` on, computed in both ways."""
    check(name)
    stages = STAGES[STAGES.index(first) :]
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for kernel in ({}, AGAINST[against]):
            folder = Path(place) / ("plain" if kernel else "own")
            folder.mkdir()
            copy_of(Path.cwd(), folder, name)
            compute(folder, stages, kernel)
            folders.append(folder)
        table = compare(*folders)
    table.insert(0, "study", name)
    table.insert(1, "processor", processor())
    table.insert(2, "first", first)
    table.insert(3, "against", against)
    return table


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.kernels")
    options.add_argument("name", help="of a file in studies/")
    options.add_argument("--first", choices=STAGES[:-1], default=STAGES[0], help="stage that runs")
    options.add_argument("--against", choices=list(AGAINST), default="kernels", help="what differs")
    args = options.parse_args(arguments)
    rows = measure(args.name, args.first, args.against)
    print(rows.to_string(index=False))
    if TABLE.exists():
        known = pd.read_csv(TABLE)
        asked = {"study": args.name, "first": args.first, "against": args.against}
        same = (known[list(asked)] == pd.Series(asked)).all(axis=1)
        rows = pd.concat([known[~same], rows], ignore_index=True)
    rows.astype(COUNTS).to_csv(TABLE, index=False, float_format="%.2g")


if __name__ == "__main__":
    main()
