"""Run the same function on many items, on all cores, with the same bytes whatever their number."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits
from tqdm import tqdm


def on_all_cores(work: Callable, items: Iterable, device="auto", label: str | None = None) -> list:
    """Return ``work(item)`` of every item, in order.

    On a CPU there is one thread a core, and each computes with one thread of its own: that is faster
    than sharing every small product among all, and no sum depends on how many cores there are. On a GPU
    items are worked on one after another.

    Parameters
    ----------
    work : callable
        Can itself call this function.
    items : iterable
    device : str or torch.device
        As in :func:`cid.arrays.pick_device`.
    label : str, optional
        Of a progress bar; without it there is none.
    """
    items = list(items)
    with tqdm(total=len(items), desc=label, disable=label is None, mininterval=5) as bar:

        def counted(item):
            result = work(item)
            bar.update()
            return result

        if _is_cpu(device):
            return _in_threads(counted, items)
        return [counted(item) for item in items]


def _is_cpu(device) -> bool:
    if device == "cpu":
        return True
    from cid.arrays import pick_device  # which imports torch, and that takes seconds

    return pick_device(device).type == "cpu"


def _in_threads(work: Callable, items: list) -> list:
    torch = sys.modules.get("torch")  # if nothing has imported it, nothing here needs it
    threads_before = torch.get_num_threads() if torch else None

    def use_one_thread() -> None:
        if torch:
            torch.set_num_threads(1)

    try:
        with (
            threadpool_limits(1),
            ThreadPoolExecutor(os.cpu_count(), initializer=use_one_thread) as pool,
        ):
            return list(pool.map(work, items))
    finally:
        if torch:
            torch.set_num_threads(threads_before)
