"""True float32 whatever less the caller lets torch compute, with the caller's switches put back.

torch rounds the factors of float32 products where it is allowed to: by autocast, by
``torch.set_float32_matmul_precision`` or by the switches ``fp32_precision`` of ``torch.backends``. A density
would take over the rounding, enlarged by its exponential. What is computed here therefore sets such
permissions aside, rather than turn to float64, which takes twice the time and far more on a consumer's GPU.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

ROUNDED = ("tf32", "bf16")  # what a switch says when it allows less than float32
EXACT = "ieee"

_lock = Lock()
_inside = 0  # calls that rely on the switches; all threads of a process share these
_aside: list[tuple[object, str]] = []  # switches that were turned, and what they said


@contextmanager
def true_float32() -> Iterator[None]:
    """Compute float32 products and convolutions in float32; also a decorator of functions.

    Autocast of the caller is off inside. Afterwards every switch says again what it said before, however
    many threads were inside.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _aside.extend(_turned())
        _inside += 1
    try:
        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for switch, value in _aside:
                    switch.fp32_precision = value
                _aside.clear()


def _turned() -> list[tuple[object, str]]:
    """Turn the switches that allow less than float32; return them with what to put back.

    A switch that was never set follows the one above it, of its backend or of all, and torch does not say
    which were set. So they are turned from the top: what still allows less after those above it were
    turned was set itself, and nothing else is touched. Without such a permission no switch is.
    """
    backends = torch.backends
    onednn = [backends.mkldnn.matmul, backends.mkldnn.conv]
    general = [backends]
    products = list(onednn)
    if torch.cuda.is_available():
        general.append(backends.cudnn)  # for all that CUDA computes
        products += [backends.cuda.matmul, backends.cudnn.conv]
    if not any(switch.fp32_precision in ROUNDED for switch in products):
        return []
    turned = []
    for switch in general + products:
        value = switch.fp32_precision
        if value in ROUNDED or switch is backends:
            switch.fp32_precision = EXACT
            # oneDNN's own general switch is not turned: torch 2.14 sets that of all backends in its place.
            follows = switch in onednn and value == backends.mkldnn.fp32_precision
            turned.append((switch, "none" if follows else value))
    return turned
