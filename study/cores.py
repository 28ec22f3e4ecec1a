"""Work on all cores, with the same bytes whatever their number."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_limits
from tqdm import tqdm


def on_all_cores(work: Callable, items: Iterable, device="auto", label: str | None = None) -> list:
    """What ``work`` makes of every item, in order: on a CPU a thread a core, else one after another.

    Each thread computes with one thread of its own. That is faster than sharing every small product
    among all, and no sum depends on how many there are. A ``label`` is that of a progress bar.
    """
    items = list(items)
    with tqdm(total=len(items), desc=label, disable=label is None, mininterval=5) as bar:

        def counted(item):
            found = work(item)
            bar.update()
            return found

        return _spread(counted, items, device)


def _spread(work: Callable, items: list, device) -> list:
    if device != "cpu":
        from cid.arrays import pick_device

        if pick_device(device).type != "cpu":
            return [work(item) for item in items]
    torch = sys.modules.get("torch")  # which takes seconds to import, and may not be needed
    before = torch and torch.get_num_threads()
    try:
        one_thread = torch and (lambda: torch.set_num_threads(1))
        with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count(), "", one_thread) as pool:
            return list(pool.map(work, items))
    finally:
        if torch:
            torch.set_num_threads(before)
