"""Side-by-side timing. Absolute times of a shared machine say little; ratios taken in turn do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and NumPy compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    ours: Callable, references: dict[str, Callable], rounds: int = 5, *, warm: bool = True
) -> dict:
    """Run everything in turn, ``rounds`` times, after one turn that does not count if ``warm``.

    Returns
    -------
    dict
        ``ours``: seconds, the median; and by reference a dict of ``seconds`` (median) and of
        ``ratio`` (seconds of the reference / seconds of ours, taken round by round): ``median``,
        ``low``, ``high`` over the rounds.
    """
    calls = {"": ours, **references}
    times = {name: [] for name in calls}
    for turn in range(0 if warm else 1, rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    found = {"ours": statistics.median(times[""])}
    for name in references:
        ratios = [theirs / own for theirs, own in zip(times[name], times[""], strict=True)]
        found[name] = {
            "seconds": statistics.median(times[name]),
            "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        }
    return found


def row(
    part: str, case: str, reference: str, found: dict, target: str = "", met=None, note=""
) -> dict:
    """One line of the table; ``target`` in words and ``met`` a function of the median ratio."""
    ratio = found[reference]["ratio"]
    return {
        "part": part,
        "case": case,
        "reference": reference,
        "ours, s": found["ours"],
        "reference, s": found[reference]["seconds"],
        "reference / ours": ratio["median"],
        "low": ratio["low"],
        "high": ratio["high"],
        "target": target,
        "met": "" if met is None else ("yes" if met(ratio["median"]) else "no"),
        "note": note,
    }
