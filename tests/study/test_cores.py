"""Work on all cores."""

import os

import sklearn.cluster  # noqa: F401 - loads its own OpenMP, whose threads are counted here, too
import torch
from threadpoolctl import threadpool_info

from study.cores import COUNTS, on_all_cores


def test_work_is_done_in_order_on_one_thread_each_also_within_such_work(capsys):
    def threads() -> set[int]:
        return {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())}

    def inner(number):
        return number, threads()

    before = threads()
    found = on_all_cores(lambda n: on_all_cores(inner, range(n), "cpu"), range(1, 4), "cpu", "work")
    assert found == [[(number, {1}) for number in range(n)] for n in range(1, 4)]
    assert "work: 100%" in capsys.readouterr().err
    assert threads() == before


def test_what_work_imports_begins_with_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert on_all_cores(lambda name: os.environ[name], COUNTS, "cpu") == ["1"] * len(COUNTS)
    assert os.environ["OMP_NUM_THREADS"] == "3" and "OPENBLAS_NUM_THREADS" not in os.environ
