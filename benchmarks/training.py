"""Stacked heads of `cid.heads` against fitting them one after the other."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.common import row, side_by_side
from cid.heads import fit_heads
from study.experiment import variations
from study.experiment.arrays import Arrays
from study.faces.dataset import read_faces
from study.methods.registry import METHODS
from study.pipeline.params import read

L2 = 0.1


def problem(level: float = 0.9):
    """Features and labels of the study, and the weights of its weighted methods on 20 training sets."""
    params = read()
    data = read_faces("data", check_images=False)
    task = params["task"]
    methods = [m for m in params["methods"] if METHODS[m].training == "weighted"]
    settings = params | {"methods": methods}
    arrays = Arrays(
        np.load("build/embed/proxy.npy"),
        np.load("build/embed/trunk.npy"),
        data.labels(task),
        data.identities(),
    )
    sets = variations.weighed(arrays, variations.drawn(arrays, settings, [level]), settings)
    train = sets[sets["part"] == "train"]
    weights = np.zeros((len(methods), train["seed"].nunique(), len(data)), np.float32)
    for place, method in enumerate(methods):
        weights[place, train["seed"].rank(method="dense").astype(int) - 1, train["row"]] = train[
            method
        ]
    return arrays.features, arrays.labels, weights.reshape(-1, len(data))


def standardised(features, weights):
    rows = np.flatnonzero(weights)
    x = features[rows]
    return rows, (x - x.mean(axis=0)) / x.std(axis=0), weights[rows] / weights[rows].sum()


def loss(w, b, x, labels, weights) -> float:
    margin = (x @ w + b) * (2 * labels - 1)
    return float((weights * np.logaddexp(0, -margin)).sum() + L2 / 2 * (w**2).sum())


def by_sklearn(features, labels, weights):
    for own in weights:
        rows, x, share = standardised(features, own)
        model = LogisticRegression(C=1 / L2, max_iter=500)
        model.fit(x, labels[rows], sample_weight=share)
        yield model.coef_[0].astype(float), float(model.intercept_[0])


def by_torch(features, labels, weights):
    """One head after the other with torch's own L-BFGS."""
    for own in weights:
        rows, x, share = standardised(features, own)
        x, share = torch.from_numpy(x), torch.from_numpy(share)
        sign = torch.from_numpy(2.0 * labels[rows] - 1).float()
        w = torch.zeros(x.shape[1], requires_grad=True)
        b = torch.zeros(1, requires_grad=True)
        solver = torch.optim.LBFGS(
            [w, b], max_iter=500, tolerance_grad=1e-4, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(x=x, w=w, b=b, sign=sign, share=share, solver=solver):
            solver.zero_grad()
            margin = (x @ w + b) * sign
            value = share @ torch.nn.functional.softplus(-margin) + L2 / 2 * (w @ w)
            value.backward()
            return value

        solver.step(closure)
        yield w.detach().double().numpy(), float(b.detach())


def measure(rounds: int) -> list[dict]:
    features, labels, weights = problem()
    every = 16
    some = weights[::every]

    ours = fit_heads(features, labels, weights, L2)
    worse = {}
    for name, fit in (("sklearn", by_sklearn), ("torch", by_torch)):
        gaps = []
        for k, (w, b) in enumerate(fit(features, labels, some)):
            rows, x, share = standardised(features, some[k])
            mean, spread = features[rows].mean(axis=0), features[rows].std(axis=0)
            own = ours.weight[k * every].astype(float)
            theirs = loss(w, b, x, labels[rows], share)
            mine = loss(own * spread, ours.bias[k * every] + own @ mean, x, labels[rows], share)
            gaps.append(mine / theirs - 1)
        worse[name] = max(gaps)
    calls = {
        "sklearn LogisticRegression, a loop": lambda: list(by_sklearn(features, labels, some)),
        "torch L-BFGS, a loop": lambda: list(by_torch(features, labels, some)),
    }
    found = side_by_side(lambda: fit_heads(features, labels, weights, L2), calls, rounds)
    rows = []
    for name in calls:
        found[name]["seconds"] *= every
        found[name]["ratio"] = {k: every * v for k, v in found[name]["ratio"].items()}
        gap = worse[name.split()[0]]
        rows.append(
            row("training", f"{len(weights)} heads, {np.count_nonzero(weights[0]):,} images each, {features.shape[1]:,} features",
                name, found, "at least 10 x", lambda r: r >= 10,
                f"{len(some)} heads, times {every}; loss of ours above theirs by at most {gap:.0e} of it")
        )  # fmt: skip
    return rows
