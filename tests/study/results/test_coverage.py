"""Do 95 % intervals hold the truth in 95 of 100 studies? Simulated studies whose truth is known.

A new study redraws training sets, people and images. Six kinds: like the rendered people (effects of
people and of pairs, ten images each); like LFW (two images a person, mostly noise); people dominate; seeds
dominate; cohorts, where every seed has people of its own; and repeated cohorts, which seeds take in turn. `python -m tests.study.results.test_coverage 4000`
prints the table with more studies.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study.results import inference, metrics

REPLICATES, LEVELS, GAIN = 100, (0.0, 1.0), 0.03  # the gain grows with the level: its slope is GAIN
# Seeds, people, images; standard deviations of the gain between seeds, people and pairs.
KINDS = {
    "rendered": (20, 40, 10, 0.005, 0.02, 0.06),
    "LFW-like": (20, 40, 2, 0.005, 0.01, 0.02),
    "people dominate": (12, 40, 10, 0.0, 0.10, 0.02),
    "seeds dominate": (15, 40, 10, 0.06, 0.0, 0.02),
    "cohorts": (20, 12, 10, 0.02, 0.06, 0.03),
    "repeated cohorts": (40, 15, 4, 0.01, 0.02, 0.08),
}
COHORTS = {"cohorts": 20, "repeated cohorts": 4}  # how many; elsewhere all people are in every seed


def simulated(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Whether images are right, (level, seed, person, image, method), and who the people of a seed are.

    The same random number says for both methods whether an image is right.
    """
    seeds, people, images, by_seed, by_person, by_pair = KINDS[kind]
    cohorts = COHORTS.get(kind, 1)
    n = cohorts * people
    who = np.arange(n).reshape(cohorts, people)[np.arange(seeds) % cohorts]
    shape = (len(LEVELS), seeds, people)
    person, erm = rng.normal(0, by_person, n)[who], 0.7 + rng.normal(0, 0.1, n)[who]
    gain = by_seed * rng.normal(size=(seeds, 1)) + person + by_pair * rng.normal(size=shape)
    gain = np.array(LEVELS)[:, None, None] * GAIN + gain
    luck = rng.random((1, seeds, people, images))
    right = np.broadcast_to(luck < erm[None, ..., None], (*shape, images))
    return np.stack([right, luck < (erm[None] + gain)[..., None]], axis=-1), who


def estimated(right, who, rng) -> inference.Estimates:
    """The study's estimates of accuracy, without the tables that :func:`inference.estimate` reads."""
    people, rates = who.max() + 1, right.mean(axis=3)
    counts = rng.multinomial(people, np.full(people, 1 / people), size=REPLICATES)
    drawn = np.vstack([np.ones(people), counts])[:, who]
    values = np.einsum("rsp,lspm->rslm", drawn, rates, optimize=True)
    with np.errstate(invalid="ignore"):  # a resample may hold nobody of a cohort
        values /= drawn.sum(axis=2)[:, :, None, None]
    point, covariance = inference._mean_and_covariances(values, people)
    key = ("seen", "accuracy")
    return inference.Estimates(
        np.array(LEVELS), ["erm", "other"], pd.DataFrame(), {key: point}, {key: covariance},
        len(who), {key: people}, {key: who.size},
    )  # fmt: skip


def joined(kind: str, studies: int) -> inference.Estimates:
    """Many simulated studies, each as a test of its own in one: their tables are made at once."""
    rng, point, covariance = np.random.default_rng(0), {}, {}
    for number in range(studies):
        one = estimated(*simulated(kind, rng), rng)
        ((_, metric),) = one.point
        (point[str(number), metric],) = one.point.values()
        (covariance[str(number), metric],) = one.covariance.values()
    people, pairs = (dict.fromkeys(point, *n.values()) for n in (one.people, one.pairs))
    return replace(one, point=point, covariance=covariance, people=people, pairs=pairs)


def coverage(kind: str, studies: int) -> pd.DataFrame:
    """One row a quantity: coverage of the truth, mean standard error over the true spread."""
    found, rows = joined(kind, studies), []
    t = inference.t_quantile(min(map(found.degrees_of_freedom, found.point)))
    own = inference.difference(found).query("level == 1")
    slope = inference.sensitivity(found).query("method == 'other'")
    for what, name, table in (("gain", "", own), ("slope", "_difference", slope)):
        ends = table[[f"{end}{name}" for end in ("mean", "low", "high")]].to_numpy()
        rows += [(what, mean, low <= GAIN <= high, (high - mean) / t) for mean, low, high in ends]
    table = pd.DataFrame(rows, columns=["quantity", "mean", "covered", "se"])
    groups = table.groupby("quantity")
    found = {
        "coverage": groups["covered"].mean(),
        "se/sd": groups["se"].mean() / groups["mean"].std(),
    }
    return pd.DataFrame(found).assign(kind=kind).reset_index()


def test_the_short_way_is_what_a_study_does():
    """From predictions as from arrays, but for the luck of the resamples."""
    for kind in ("rendered", "cohorts", "repeated cohorts"):
        right, who = simulated(kind, np.random.default_rng(1))
        short = estimated(right, who, np.random.default_rng(2))
        people, images = who.max() + 1, right.shape[3]
        rows = np.arange(people * images).reshape(people, images)[who]
        labels, parts = np.arange(people * images) % 2, []
        for (k, level), seed in itertools.product(enumerate(LEVELS), range(len(who))):
            row = rows[seed].ravel()
            table = {"level": level, "seed": seed, "test": "seen", "row": row}
            for m, method in enumerate(short.methods):
                own = right[k, seed, ..., m].ravel()
                table[method] = np.where(own == (labels[row] == 1), 1.0, -1.0)
            parts.append(pd.DataFrame(table))
        full = inference.estimate(
            pd.concat(parts), short.methods, labels, np.repeat(np.arange(people), images),
            metrics=["accuracy"], replicates=REPLICATES,
        )  # fmt: skip
        key = ("seen", "accuracy")
        np.testing.assert_allclose(full.point[key], short.point[key])
        one, two = (inference.difference(e).query("level == 1").iloc[0] for e in (full, short))
        assert one["high"] - one["mean"] == pytest.approx(two["high"] - two["mean"], rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_truth_as_often_as_they_say(kind):
    """The bounds are two standard errors of a share of 250 studies, and three of a spread among them.

    Standard errors that are a fifth too narrow, or that leave out the people, do not pass.
    """
    found = coverage(kind, 250).set_index("quantity")
    assert 0.92 <= found.loc["gain", "coverage"] <= 0.98
    assert 0.86 <= found.loc["gain", "se/sd"] <= 1.14
    # Nothing of people or seeds is left in a slope here, and the largest of three noisy variances of the
    # pairs is taken: wider than needed, never narrower.
    assert 0.92 <= found.loc["slope", "coverage"] <= 1
    assert 0.91 <= found.loc["slope", "se/sd"] <= 1.39


# Spread over people, pooled over the seeds: seeds, people, images; share of the pairs that are tested;
# standard deviations between people, pairs and seeds; how much of the spread the other method takes away.
POOLED = {
    "LFW-like": (40, 80, 4, 0.8, 0.08, 0.06, 0.01, 0.3),
    "noisy": (20, 60, 2, 0.8, 0.08, 0.02, 0.01, 0.3),
    "people dominate": (20, 60, 10, 1.0, 0.12, 0.02, 0.0, 0.3),
    "seeds dominate": (20, 60, 4, 0.8, 0.08, 0.06, 0.06, 0.3),
    "no effect": (20, 60, 4, 0.8, 0.08, 0.06, 0.01, 0.0),
}


def pooled(kind: str, rng: np.random.Generator) -> metrics.RightByPerson:
    """A simulated study: how many images of each person ERM and another method have right."""
    seeds, people, images, share, by_person, by_pair, by_seed, taken = POOLED[kind]
    skill = 0.85 + by_person * rng.normal(size=people)
    gain = 0.03 - taken * (skill - 0.85) + 0.02 * rng.normal(size=people)
    tested = rng.random((seeds, people)) < share
    common = by_pair * rng.normal(size=(seeds, people))
    own = by_seed * rng.normal(size=(seeds, 1)) + by_pair / 2 * rng.normal(size=(seeds, people))
    luck = rng.random((seeds, people, images))
    rates = np.stack([skill + common, skill + gain + common + own], axis=-1)
    right = (luck[..., None] < rates[:, :, None]).sum(axis=2) * tested[..., None]
    return metrics.RightByPerson(right=right.astype(float), images=images * tested.astype(float))


def pooled_coverage(kind: str, studies: int) -> pd.DataFrame:
    """As :func:`coverage`, of the other method's difference to ERM; the truth is the mean of all studies."""
    rng = np.random.default_rng(0)
    measured = {name: metrics.METRICS[name] for name in ("people_sd", "worst_tenth")}
    rows = []
    for number in range(studies):
        counted = [pooled(kind, rng)]
        covariances = inference._pooled_covariances({"seen": counted}, measured, REPLICATES, number)
        for name, metric in measured.items():
            erm, other = inference._pooled_points(counted, metric)[0]
            own = covariances["seen", name][:, 0, :, 0]
            of_difference = own[:, 0, 0] + own[:, 1, 1] - 2 * own[:, 0, 1]
            rows.append((name, other - erm, np.sqrt(inference.variance(of_difference))))
    table = pd.DataFrame(rows, columns=["quantity", "mean", "se"])
    groups = table.groupby("quantity")
    distance = (table["mean"] - groups["mean"].transform("mean")).abs()
    t = inference.t_quantile(min(POOLED[kind][:2]) - 1)
    table["covered"] = distance <= t * table["se"]
    found = {
        "coverage": groups["covered"].mean(),
        "se/sd": groups["se"].mean() / groups["mean"].std(),
    }
    return pd.DataFrame(found).assign(kind=kind).reset_index()


@pytest.mark.parametrize("kind", POOLED)
def test_intervals_of_the_spread_over_people_hold_it_as_often_as_they_say(kind):
    """The worst tenth are few people, whom another draw changes, so that intervals are rather too wide.

    600 studies gave coverages of .93 (people dominate) to .99, and ratios of .91 to 1.33.
    """
    found = pooled_coverage(kind, 150).set_index("quantity")
    assert 0.9 <= found["coverage"].min() and found["coverage"].max() <= 1
    assert 0.8 <= found["se/sd"].min() and found["se/sd"].max() <= 1.45


def test_power_foretells_a_larger_study_of_cohorts(monkeypatch):
    """From 20 cohorts, what 80 detect: each pair of a seed and a person is there once."""
    rng, seeds, people = np.random.default_rng(0), *KINDS["cohorts"][:2]
    found = {}
    for times in (1, 4):
        monkeypatch.setitem(KINDS, "cohorts", (times * seeds, *KINDS["cohorts"][1:]))
        monkeypatch.setitem(COHORTS, "cohorts", times * seeds)
        found[times] = pd.concat(
            inference.power(estimated(*simulated("cohorts", rng), rng)) for _ in range(40)
        )
        monkeypatch.undo()
    n = 4 * seeds * people
    foretold = [inference.detectable(row, 4 * seeds, n, n) for _, row in found[1].iterrows()]
    assert np.mean(foretold) == pytest.approx(found[4]["detectable"].mean(), rel=0.05)


if __name__ == "__main__":
    studies = int(sys.argv[1])
    tables = [coverage(kind, studies) for kind in KINDS]
    tables += [pooled_coverage(kind, studies) for kind in POOLED]
    print(pd.concat(tables).round(3).to_string(index=False))
