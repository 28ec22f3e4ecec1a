"""Where computations run."""

import torch


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name; "auto" is a GPU when there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
