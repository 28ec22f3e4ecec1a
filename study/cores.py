"""Work on all cores, with the same bytes whatever their number."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from threadpoolctl import threadpool_limits

from cid.device import pick_device


def on_all_cores(work: Callable, items: Iterable, device: str | torch.device = "auto") -> list:
    """What ``work`` makes of every item, in order: on a CPU a thread a core, else one after another.

    Each thread computes with one thread of its own. That is faster than sharing every small product
    among all, and no sum depends on how many there are.
    """
    if pick_device(device).type != "cpu":
        return [work(item) for item in items]
    before = torch.get_num_threads()
    one_thread = partial(torch.set_num_threads, 1)
    try:
        with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count(), "", one_thread) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(before)
