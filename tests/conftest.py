"""What tests share: their order, and small data."""

import gc

import numpy as np
import pytest

# Libraries make a million objects that stay: look through them rarely.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish():
    """What was imported stays: no later look for garbage goes through it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """What takes minutes first, as a process that began it last would be waited for.

    `test_cookbook` makes a study that the second half of it and `test_study` are also about: these have other
    tests before them.
    """
    order = ("/test_cookbook.py", "/test_browser.py", "tests/cid/", "tests/study/methods/",
             "tests/study/experiment/", "/test_study.py", "/test_cookbook_later.py", "/test_kernels.py",
             "tests/study/results/", "tests/")  # fmt: skip

    def place(item) -> int:
        return next(i for i, part in enumerate(order) if part in item.nodeid)

    items.sort(key=place)


@pytest.fixture(scope="module")
def one_thread():
    """Sums in one order whatever the machine; small batches gain nothing from more threads."""
    import torch  # not by the process that hands out tests, which would take seconds for it

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


@pytest.fixture(scope="module")
def people():
    """20 people of 16 images: identities, labels, a proxy, and features that know person and label."""
    rng = np.random.default_rng(0)
    identities, labels = np.repeat(np.arange(20), 16), np.tile([0, 1], 160)
    proxy = rng.normal(size=(20, 12))[identities] + 0.2 * rng.normal(size=(320, 12))
    features = np.hstack([proxy, labels[:, None] + rng.normal(size=(320, 4))])
    return identities, labels, proxy.astype(np.float32), features.astype(np.float32)


@pytest.fixture(scope="module")
def arrays(people):
    """The same as the variations of a study see them."""
    from study.experiment.variations import Arrays

    identities, labels, proxy, features = people
    return Arrays(proxy, features, labels, identities)
