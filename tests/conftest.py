"""What the tests of networks share, in `cid` and in the study."""

import numpy as np
import pytest
import torch

LONGEST = ("test_cookbook.py", "test_study.py")  # minutes each, where all others take seconds


def pytest_collection_modifyitems(items):
    """The longest files first, each on a process: begun last, they would keep one waiting alone."""
    items.sort(key=lambda item: -(item.path.name in LONGEST))


@pytest.fixture(scope="module")
def one_thread():
    """Sums in one order whatever the machine; small batches gain nothing from more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features():
    """160 samples of 12 features on different scales, labels by a noisy linear rule."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(160, 12)) * np.geomspace(0.1, 10, 12) + 3
    labels = ((x[:, 6] - 3) / x[:, 6].std() + 0.5 * rng.normal(size=160) > 0).astype(int)
    return x.astype(np.float32), labels
