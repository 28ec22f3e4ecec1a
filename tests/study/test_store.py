"""What is kept on disk, and under which name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from study import store


def test_what_was_computed_is_taken_from_its_folder_and_damage_is_mended(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3), "y": np.float32(2)}

    for times in (1, 1):
        found = store.kept(tmp_path / "new", "name", compute)
        assert found["x"].tolist() == [0, 1, 2] and float(found["y"]) == 2
        assert len(calls) == times
    file = tmp_path / "new" / "name.npz"
    file.write_bytes(file.read_bytes()[:50])
    store.kept(tmp_path / "new", "name", compute)
    store.kept(None, "name", compute)
    assert len(calls) == 3 and [path.name for path in file.parent.iterdir()] == ["name.npz"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    store.write(tmp_path / "a", lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path / "a", fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    store.write_text(tmp_path / "new" / "b", "é\n")
    assert (tmp_path / "new" / "b").read_bytes() == b"\xc3\xa9\n"


def test_a_digest_tells_all_that_counts_apart():
    x = np.arange(6, dtype=np.float32)
    parts = [
        (x,), (x + 1,), (x.astype(int),), (x.reshape(2, 3),), (x[:3], x[3:]), ([x[:3]], x[3:]),
        ({"a": 1},), ({"a": 1.5},), ("a",), (None,), (x, None), (["a", "b"],), ("a", "b"),
        (b"a",), (b"a|", b"b"), (b"a", b"|b"), (b"a|b",),
    ]  # fmt: skip
    assert len({store.digest(*part) for part in parts}) == len(parts)
    assert store.digest(torch.from_numpy(x), {"b": 1, "a": 2}).startswith(
        store.digest(torch.from_numpy(x.copy()), {"a": 2, "b": 1})
    )
    large = np.random.default_rng(0).normal(size=(10_000, 2))
    assert store.digest(large) == store.digest(np.asfortranarray(large))
    changed = large.copy()
    changed[-1, -1] += 1
    assert store.digest(large) != store.digest(changed)


def test_threads_that_write_the_same_file_do_not_mix_their_bytes(tmp_path):
    together = Barrier(2)

    def save(text: bytes):
        def slowly(file):
            file.write(text)
            together.wait(timeout=600)  # both drafts are open
            file.write(text)

        store.write(tmp_path / "a", slowly)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(save, (b"xx", b"yyy")))
    assert [path.read_bytes() for path in tmp_path.iterdir()] in ([b"xxxx"], [b"yyyyyy"])
