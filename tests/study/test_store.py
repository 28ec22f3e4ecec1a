"""What is kept on disk, and under which name."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from study import store

CODE = ["study.store.digest"]


def test_what_was_computed_is_taken_from_its_folder_and_damage_is_mended(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3), "y": np.float32(2)}

    for times in (1, 1):
        found = store.kept(tmp_path / "new", "name", {"a": 1}, CODE, compute)
        assert found["x"].tolist() == [0, 1, 2] and float(found["y"]) == 2
        assert len(calls) == times
    file = store.kept_path(tmp_path / "new", "name", {"a": 1}, CODE)
    file.write_bytes(file.read_bytes()[:50])
    store.kept(tmp_path / "new", "name", {"a": 1}, CODE, compute)
    store.kept(None, "name", {"a": 1}, CODE, compute)
    assert len(calls) == 3 and list(file.parent.iterdir()) == [file]


def test_a_file_is_named_by_its_label_inputs_and_code(tmp_path):
    keys = [
        ("a", {"x": np.arange(3), "l2": 0.1}, CODE),
        ("b", {"x": np.arange(3), "l2": 0.1}, CODE),
        ("a", {"x": np.arange(4), "l2": 0.1}, CODE),
        ("a", {"x": np.arange(3), "l2": 0.2}, CODE),
        ("a", {"x": np.arange(3), "l2": 0.1}, ["study.store.read"]),
        ("a", {"x": np.arange(3), "l2": 0.1}, [*CODE, "study.store.read"]),
    ]
    names = [store.kept_path(tmp_path, *key).name for key in keys]
    assert len(set(names)) == len(names)
    assert store.kept_path(tmp_path, *keys[0]).name == names[0]
    assert all(re.fullmatch(r"[ab]-[0-9a-f]{24}\.npz", name) for name in names)
    with pytest.raises(ValueError, match="no definition 'study.store.nothing'"):
        store.kept_path(tmp_path, "a", {}, ["study.store.nothing"])


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
        ({"a": x},), ({"a": x + 1},), ({"a": [x, x]},), ({"a": {"b": x}},), ({"a": b"a"},), (np.float32(2),),
    ]  # fmt: skip
    assert len({store.digest(*part) for part in parts}) == len(parts)
    assert store.digest(torch.from_numpy(x), {"b": 1, "a": 2}).startswith(
        store.digest(torch.from_numpy(x.copy()), {"a": 2, "b": 1})
    )
    nested = {"b": [x], "a": np.int64(2)}
    assert store.digest(nested) == store.digest({"a": 2, "b": [x]})
    assert store.digest(np.array(2.0)) != store.digest(np.array(3.0))
    with pytest.raises(TypeError, match="a value of type set has no digest"):
        store.digest({"a": {1}})
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
