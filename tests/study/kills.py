"""Kill the pipeline at random moments: it must go on where it stopped, and end in the same bytes.

    python tests/study/kills.py [--times 20] [--seed 0]

Runs a small study once, undisturbed; then again from nothing, while the whole process group of
``dvc repro`` is killed (SIGKILL) after a random time, over and over; and compares the hashes of all
outputs. Kept out of the tests that always run: it takes some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from test_study import call, environment, locked, small_study


def forget(folder: Path) -> None:
    """Remove everything that was computed: outputs, DVC's cache of them and what is kept for later."""
    for name in ("build", "reports", ".dvc/cache/runs", "dvc.lock"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def run_for(folder: Path, seconds: float | None) -> int | None:
    """``dvc repro`` for some seconds: its exit status, or None where it was killed."""
    with open(folder / "repro.log", "a") as log:
        process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "study")
        folder.mkdir()
        small_study(folder)
        began = time.monotonic()
        call(folder, "dvc", "repro")
        whole, expected = time.monotonic() - began, locked(folder)
        print(f"undisturbed: {whole:.0f} s, {len(expected)} outputs", flush=True)
        kills = rounds = 0
        while kills < args.times:
            forget(folder)
            rounds += 1
            while True:
                # Short lives at first, so that kills fall everywhere; a kill costs what was under way.
                status = run_for(folder, draw.uniform(2, whole / 3) if kills < args.times else None)
                if status is None:
                    kills += 1
                    print(f"kill {kills}", end=" ", flush=True)
                    continue
                if status:
                    print((folder / "repro.log").read_text()[-3000:], file=sys.stderr)
                    print(f"\nrun {rounds} failed after {kills} kills", file=sys.stderr)
                    return 1
                break
            found = locked(folder)
            differing = [path for path in expected if found.get(path) != expected[path]]
            print(
                f"\nround {rounds}: {len(differing)} of {len(expected)} outputs differ", flush=True
            )
            if differing:
                print("\n".join(differing), file=sys.stderr)
                return 1
        print(f"{kills} kills survived in {rounds} rounds; the same bytes every time.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
