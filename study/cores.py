"""Run the same function on many items, on all cores, with the same bytes whatever their number."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits
from tqdm import tqdm

# What libraries read, when they are loaded, as the number of their threads.
COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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


@contextmanager
def _one_thread_of_what_is_loaded_later():
    """Let libraries that work imports, such as scikit-learn, begin with one thread; they stay with it.

    No limit reaches them that was set before, and threads that set one for all take it back from others.
    """
    before = {name: os.environ.get(name) for name in COUNTS}
    os.environ.update(dict.fromkeys(COUNTS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _in_threads(work: Callable, items: list) -> list:
    torch = sys.modules.get("torch")  # if nothing has imported it, nothing here needs it
    threads_before = torch.get_num_threads() if torch else None

    def use_one_thread() -> None:
        threadpool_limits(
            1
        )  # OpenMP counts for every thread anew; what this thread sets ends with it
        if torch:
            torch.set_num_threads(1)

    try:
        with (
            threadpool_limits(1),
            _one_thread_of_what_is_loaded_later(),
            ThreadPoolExecutor(os.cpu_count(), initializer=use_one_thread) as pool,
        ):
            return list(pool.map(work, items))
    finally:
        if torch:
            torch.set_num_threads(threads_before)
