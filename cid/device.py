"""Where computations run."""

import torch


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name; "auto" is a GPU when there is one, else the CPU. ValueError if unusable."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (TypeError, RuntimeError):
        raise ValueError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:0") from None
    if found.type != "cpu" and not (found.type == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, but torch finds no such GPU; take auto or cpu")
    return found
