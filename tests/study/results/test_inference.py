"""Intervals against brute force, hand-worked cases and simulated studies; about 10 seconds."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit

from study.results import inference, metrics

LEVELS, SEEDS, METHODS = (0.0, 0.5, 1.0), 5, ["erm", "cid", "oracle"]
PEOPLE, IMAGES = 12, 6
IDENTITIES = np.repeat([f"p{k:02d}" for k in range(PEOPLE)], IMAGES)
WEIGHTED = {name: metric.measure for name, metric in metrics.METRICS.items()}
UNIFORM = np.ones((1, SEEDS)), np.ones((1, PEOPLE))


@pytest.fixture(scope="module")
def labels():
    """Labels that differ in number between people; one person has no positive."""
    drawn = np.random.default_rng(5).random(PEOPLE * IMAGES) < 0.5
    drawn[:IMAGES] = False
    drawn[IMAGES] = True
    return drawn.astype(int)


@pytest.fixture(scope="module")
def predictions(labels):
    """Every seed has its own unseen people; logits are rounded, so that many are tied."""
    rng = np.random.default_rng(0)
    tables = []
    for level, seed in itertools.product(LEVELS, range(SEEDS)):
        unseen = (np.arange(PEOPLE) + 3 * seed) % PEOPLE < 3
        tables.append(
            pd.DataFrame({"level": level, "seed": seed, "row": range(len(labels))}).assign(
                test=np.where(unseen[np.arange(len(labels)) // IMAGES], "unseen", "seen"),
                **{m: np.round(rng.normal(2 * labels - 1, 1.2 + level), 1) for m in METHODS},
            )
        )
    return pd.concat(tables).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def replicates(predictions, labels):
    return inference.bootstrap(predictions, METHODS, labels, IDENTITIES, replicates=200)


def row(table, **where):
    found = table.loc[(table[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


# ---------------------------------------------------------------------------- resampling


def test_points_are_the_means_of_the_runs(replicates, predictions, labels):
    runs = metrics.evaluate(predictions, METHODS, labels, IDENTITIES)
    means = runs.groupby(["test", "level", "method"])[list(metrics.METRICS)].mean()
    table = inference.summary(replicates)
    assert len(table) == 2 * len(metrics.METRICS) * len(LEVELS) * len(METHODS)
    for test, metric, level, method, mean in table.iloc[:, :5].itertuples(index=False):
        assert mean == means.loc[(test, level, method), metric]


def test_counting_everything_once_changes_nothing(replicates, predictions, labels):
    once = inference.resample(predictions, METHODS, labels, IDENTITIES, WEIGHTED, *UNIFORM)
    assert once.keys() == replicates.point.keys()
    for key, values in once.items():
        np.testing.assert_allclose(values[0], replicates.point[key], rtol=1e-12, err_msg=str(key))


def test_counts_are_as_good_as_copies(predictions, labels):
    """Every metric, with people and seeds physically repeated under new names."""
    rng = np.random.default_rng(1)
    seed_counts = rng.multinomial(SEEDS, np.full(SEEDS, 1 / SEEDS), size=6)
    people_counts = rng.multinomial(PEOPLE, np.full(PEOPLE, 1 / PEOPLE), size=6)
    found = inference.resample(
        predictions, METHODS, labels, IDENTITIES, WEIGHTED, seed_counts, people_counts
    )
    person = pd.factorize(IDENTITIES)[0][predictions["row"]]
    for draw in range(6):
        rows, seeds, names = [], [], []
        for at, (seed, who) in enumerate(zip(predictions["seed"], person, strict=True)):
            for s in range(seed_counts[draw, seed]):
                for copy in range(people_counts[draw, who]):
                    rows.append(at)
                    seeds.append(f"{seed}-{s}")
                    names.append(f"{who}-{copy}")
        copies = predictions.iloc[rows].assign(seed=seeds)
        truth = labels[copies["row"]]
        copies["row"] = range(len(copies))
        runs = metrics.evaluate(copies, METHODS, truth, names)
        means = runs.groupby(["test", "level", "method"])[list(metrics.METRICS)].mean()
        for test, metric in found:
            expected = means.loc[test][metric].unstack()[METHODS].to_numpy()
            np.testing.assert_allclose(
                found[test, metric][draw], expected, atol=1e-9, err_msg=f"{draw} {test} {metric}"
            )


def test_runs_without_anyone_drawn_do_not_count(predictions, labels):
    """Only person 0 is drawn: seeds that trained on it say nothing of unseen people."""
    counts = np.zeros((1, PEOPLE))
    counts[0, 0] = 3
    found = inference.resample(
        predictions, METHODS, labels, IDENTITIES, WEIGHTED, np.ones((1, SEEDS)), counts
    )
    own = predictions[(predictions["row"] < IMAGES) & (predictions["test"] == "unseen")]
    assert 0 < own["seed"].nunique() < SEEDS
    right = own[METHODS].le(0).groupby([own["level"], own["seed"]]).mean()  # it has no positive
    np.testing.assert_allclose(found["unseen", "accuracy"][0], right.groupby("level").mean())
    assert np.isnan(found["unseen", "tpr_gap"]).all() and np.isnan(found["seen", "auroc"]).all()


def test_the_same_seed_gives_the_same_bytes(replicates, predictions, labels):
    again = inference.bootstrap(predictions, METHODS, labels, IDENTITIES, replicates=200)
    other = inference.bootstrap(predictions, METHODS, labels, IDENTITIES, replicates=200, seed=1)
    key = ("seen", "worst_decile")
    assert again.draws[key].tobytes() == replicates.draws[key].tobytes()
    assert (other.draws[key] != replicates.draws[key]).any()


def test_kept_draws_are_not_drawn_again(replicates, predictions, labels, tmp_path, monkeypatch):
    """They are the same bytes, and stand for nothing that would be drawn otherwise."""
    names = ["accuracy", "worst_decile"]

    def drawn(predictions=predictions, labels=labels, identities=IDENTITIES, **options):
        options = {"metrics": names, "replicates": 200, "folder": tmp_path} | options
        return inference.bootstrap(predictions, METHODS, labels, identities, **options)

    first = drawn()
    monkeypatch.setattr(inference, "_draws", lambda *_: pytest.fail("drawn again"))
    again = drawn()
    for key in again.draws:
        assert again.draws[key].tobytes() == replicates.draws[key].tobytes()
        assert again.point[key].tobytes() == first.point[key].tobytes()
    other = np.char.replace(IDENTITIES, "p00", "p01")
    for change in (
        {"seed": 1},
        {"replicates": 100},
        {"metrics": ["accuracy"]},
        {"labels": 1 - labels},
        {"identities": other},
        {"predictions": predictions.assign(cid=predictions["cid"] + 1)},
    ):
        with pytest.raises(pytest.fail.Exception, match="drawn again"):
            drawn(**change)


def test_values_of_a_setting_take_the_place_of_levels(predictions, labels):
    """The same numbers under their names, in order of appearance, whatever the order of the names."""
    part = predictions[predictions["level"] > 0].sort_values("level", kind="stable")
    named = part.assign(value=part["level"].map({0.5: "b", 1.0: "a"})).drop(columns="level")
    about = (METHODS, labels, IDENTITIES)
    options = {"metrics": ["accuracy", "tpr_gap"], "replicates": 50}
    found = inference.bootstrap(named, *about, cell="value", **options)
    expected = inference.bootstrap(part, *about, **options)
    for functional in (inference.summary, inference.difference):
        table = functional(found)
        assert list(table)[:4] == ["test", "metric", "value", "method"]
        back = table.assign(value=table["value"].map({"b": 0.5, "a": 1.0}))
        pd.testing.assert_frame_equal(
            back.rename(columns={"value": "level"}), functional(expected), check_exact=True
        )


@pytest.mark.parametrize("source", ["seed", "identity"])
def test_seeds_and_identities_are_both_redrawn(source):
    """Where one of them decides everything, replicates vary as a mean of as many redraws does."""
    rows = pd.DataFrame({"seed": np.arange(8 * 200) // 200, "row": np.arange(8 * 200) % 200})
    rows = rows.assign(level=0.0, test="seen", person=rows["row"] // 20)
    unit = rows["seed" if source == "seed" else "person"]
    right = rows["row"] % 20 < 8 + unit  # person or seed u: 8 + u of 20 images right
    predictions = rows.assign(erm=np.where(right, 1.0, -1.0))
    found = inference.bootstrap(
        predictions, ["erm"], np.ones(200, int), np.arange(200) // 20,
        metrics=["accuracy"], replicates=4000,
    )  # fmt: skip
    means = right.groupby(unit).mean()
    draws = found.draws["seen", "accuracy"][:, 0, 0]
    assert draws.mean() == pytest.approx(means.mean(), abs=0.003)
    assert draws.std() == pytest.approx(means.std(ddof=0) / np.sqrt(len(means)), rel=0.05)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda p: p, {"replicates": 1}, "replicates is 1"),
        (lambda p: p, {"metrics": ["acuracy"]}, "did you mean 'accuracy'"),
        (lambda p: p.drop(columns="cid"), {}, "no column 'cid'"),
        (lambda p: p.assign(cid=np.nan), {}, "predictions of 'cid' are not finite"),
        (
            lambda p: p[(p["seed"] != 3) | (p["level"] != 0.5)],
            {},
            "no rows of level 0.5, seed 3, test 'seen'",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(predictions, labels, change, options, message):
    with pytest.raises(ValueError, match=message):
        inference.bootstrap(change(predictions), METHODS, labels, IDENTITIES, **options)


# ---------------------------------------------------------------------------- intervals


def test_interval_and_p_value_agree():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.1, size=(1000, 3))
    found = inference.interval([0.0, 0.3, 0.2], draws, 10)
    se = draws.std(axis=0, ddof=1)
    np.testing.assert_allclose(found["high"] - found["mean"], stats.t.ppf(0.975, 10) * se)
    np.testing.assert_allclose(found["p"], 2 * stats.t.sf([0, 0.3, 0.2] / se, 10))
    at_the_edge = inference.interval(found["high"][0], draws[:, 0], 10)
    assert at_the_edge["p"] == pytest.approx(0.05) and at_the_edge["low"] == pytest.approx(0)
    undefined = np.full((5, 3), np.nan)
    with_gaps = inference.interval([0.0, 0.3, 0.2], np.vstack([draws, undefined]), 10)
    np.testing.assert_allclose(with_gaps["high"], found["high"])


def test_equal_methods_differ_by_nothing():
    found = inference.interval([0.0, 1e-17, 0.1], np.zeros((50, 3)) + [0, 1e-17, 0.1], 5)
    assert found["p"][:2].tolist() == [1, 1] and found["p"][2] < 1e-20


@pytest.mark.parametrize("only", ["seed", "identity"])
def test_one_seed_or_one_identity_leaves_the_interval_unbounded(predictions, labels, only):
    alone = predictions["seed"] == 0 if only == "seed" else predictions["row"] // IMAGES == 7
    part = predictions[alone & (predictions["test"] == "seen")]
    if only == "identity":
        part = part[part["seed"].isin([0, 1])]
    found = inference.bootstrap(part, METHODS, labels, IDENTITIES, replicates=20)
    table = inference.difference(found).query("metric == 'accuracy'")
    assert np.isfinite(table["mean"]).all() and (table["p"] == 1).all()
    assert (table["low"] == -np.inf).all() and (table["high"] == np.inf).all()
    assert inference.oracle_gap_recovered(found)["mean"].isna().all()


def test_intervals_cover_the_truth_of_crossed_effects():
    """200 studies with seed, identity, pair and image effects; a new study redraws all of them."""
    rng = np.random.default_rng(0)
    n_seeds, n_people, n_images, spread = 10, 15, 4, (0.3, 0.6, 0.3)
    truth = expit(1 + rng.normal(0, np.linalg.norm(spread), 1_000_000)).mean()
    labels, people = np.ones(n_people * n_images, int), np.repeat(np.arange(n_people), n_images)
    seed, row = np.divmod(np.arange(n_seeds * len(labels)), len(labels))
    inside = 0
    for study in range(200):
        logit = 1 + sum(
            rng.normal(0, s, size)
            for s, size in zip(spread, [(n_seeds, 1), n_people, (n_seeds, n_people)], strict=True)
        )
        right = rng.random(len(row)) < expit(logit)[seed, people[row]]
        predictions = pd.DataFrame({"level": 0.0, "seed": seed, "test": "seen", "row": row})
        found = inference.bootstrap(
            predictions.assign(erm=np.where(right, 1.0, -1.0)), ["erm"], labels, people,
            metrics=["accuracy"], replicates=100, seed=study,
        )  # fmt: skip
        (line,) = inference.summary(found).itertuples()
        inside += line.low <= truth <= line.high
    assert inside / 200 >= 0.93


def test_fieller_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside, n = 0, 20
    for _ in range(1000):
        b = rng.normal(2, 1, size=n)
        a = 0.3 * b + rng.normal(0, 1, size=n)
        draws = rng.multivariate_normal([0, 0], np.cov(a, b) / n, size=300).T
        found = inference.fieller(a.mean(), b.mean(), *draws, n - 1)
        inside += found["low"] <= 0.3 <= found["high"]
    assert inside / 1000 == pytest.approx(0.95, abs=0.02)


def test_a_ratio_is_undefined_where_the_denominator_may_be_zero():
    noise = np.random.default_rng(0).normal(size=200)
    assert np.isnan(inference.fieller(1.0, 0.5, 1 + noise, 0.5 + noise, 19)["mean"])
    assert np.isnan(inference.fieller(0.0, 0.0, 0 * noise, 0 * noise, 19)["mean"])
    found = inference.fieller(20.0, 10.0, 20 + 2 * noise, 10 + noise, 19)
    assert [found[k] for k in ("mean", "low", "high")] == pytest.approx([2, 2, 2])


def test_holm_of_a_hand_worked_case():
    found = inference.holm([0.01, 0.04, 0.03, 0.005, np.nan])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02, np.nan])
    np.testing.assert_array_equal(inference.holm([0.9, 0.8]), [1, 1])


def test_holm_rejects_as_the_step_down_procedure_does():
    rng = np.random.default_rng(0)
    for alpha in (0.01, 0.05, 0.3):
        for p in rng.random((50, 7)) ** 4:
            rejected, left = set(), sorted(range(7), key=lambda k: p[k])
            while left and p[left[0]] <= alpha / len(left):
                rejected.add(left.pop(0))
            assert set(np.flatnonzero(inference.holm(p) <= alpha)) == rejected


# ---------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def study():
    """ERM falls by .1 per unit of bias, CID by half of that, the oracle not at all."""
    rng = np.random.default_rng(1)
    levels, shared = np.array(LEVELS), rng.normal(0, 0.02, size=(400, 1, 1))
    slopes = np.array([-0.1, -0.05, 0.0])
    point = {("seen", "accuracy"): 0.9 + levels[:, None] * slopes}
    point["seen", "identity_sd"] = 0.2 - levels[:, None] * slopes
    draws = {
        key: values + shared + rng.normal(0, 1e-3, size=(400, 3, 3))
        for key, values in point.items()
    }
    freedom = dict.fromkeys(point, 9)
    return inference.Replicates(levels, METHODS, pd.DataFrame(), point, draws, freedom)


def test_comparisons_are_paired(study):
    where = {"test": "seen", "metric": "accuracy", "level": 1.0, "method": "cid"}
    alone = row(inference.summary(study), **where)
    paired = row(inference.difference(study), **where)
    assert alone["mean"] == pytest.approx(0.85) and paired["mean"] == pytest.approx(0.05)
    assert paired["high"] - paired["low"] < 0.1 * (alone["high"] - alone["low"])


def test_differences_are_corrected_over_methods_and_levels(study):
    table = inference.difference(study)
    assert list(table)[4:] == ["mean", "low", "high", "p", "p_holm"]
    assert set(table["method"]) == {"cid", "oracle"}
    for _, part in table.groupby(["test", "metric"]):
        assert len(part) == 6
        np.testing.assert_array_equal(part["p_holm"], inference.holm(part["p"]))


def test_sensitivity_is_the_slope(study):
    table = inference.sensitivity(study)
    cid = row(table, metric="accuracy", method="cid")
    assert cid[["mean", "mean_difference"]].tolist() == pytest.approx([-0.05, 0.05])
    assert cid["low_difference"] < 0.05 < cid["high_difference"] and cid["p_holm"] >= cid["p"]
    erm = row(table, metric="accuracy", method="erm")
    assert erm["mean"] == pytest.approx(-0.1) and np.isnan(erm["mean_difference"])
    draws = study.draws["seen", "accuracy"][:, :, 0]
    slopes = np.polyfit(LEVELS, draws.T, 1)[0]
    assert erm["high"] - erm["mean"] == pytest.approx(stats.t.ppf(0.975, 9) * slopes.std(ddof=1))


def test_area_is_the_trapezoids_by_the_range():
    levels = np.array([0.0, 0.5, 0.8, 0.9])
    curve = np.array([0.9, 0.8, 0.5, 0.2])
    weights = inference.area_weights(levels)
    assert weights @ curve == pytest.approx(np.trapezoid(curve, levels) / 0.9)
    assert inference.area_weights([0.3]) == 1 and inference.slope_weights([0.3]).shape == (0, 1)


def test_area_and_its_difference(study):
    cid = row(inference.area(study), metric="identity_sd", method="cid")
    assert cid[["mean", "mean_difference"]].tolist() == pytest.approx([0.225, -0.025])


def test_the_share_of_the_oracles_gain(study):
    table = inference.oracle_gap_recovered(study)
    assert set(table["method"]) == {"cid"} and len(table) == 2 * 4
    for metric in ("accuracy", "identity_sd"):
        part = table[table["metric"] == metric]
        assert part["mean"].isna().tolist() == [True, False, False, False]  # no gain at bias 0
        assert part["mean"].tolist()[1:] == pytest.approx([0.5] * 3)
        assert ((part["low"] < 0.5) & (part["high"] > 0.5)).tolist() == [False, True, True, True]
    assert table["level"].isna().sum() == 2  # the area, one a metric


def test_a_harmful_oracle_has_no_gain_to_recover(study):
    worse = {key: values[:, ::-1] for key, values in study.point.items()}
    draws = {key: values[..., ::-1] for key, values in study.draws.items()}
    turned = inference.Replicates(study.levels, METHODS, study.runs, worse, draws, study.freedom)
    assert inference.oracle_gap_recovered(turned)["mean"].isna().all()
    assert inference.sensitivity_removed(turned)["mean"].isna().all()  # ERM's slope is 0


def test_the_share_of_sensitivity_removed(study):
    table = inference.sensitivity_removed(study)
    for metric in ("accuracy", "identity_sd"):
        cid = row(table, metric=metric, method="cid")
        assert cid["mean"] == pytest.approx(0.5) and cid["low"] < 0.5 < cid["high"]
        assert row(table, metric=metric, method="oracle")["mean"] == pytest.approx(1)


def test_one_level_has_an_area_but_no_slope(predictions, labels):
    part = predictions[predictions["level"] == 0.5]
    found = inference.bootstrap(
        part, METHODS[:2], labels, IDENTITIES, metrics=["accuracy"], replicates=20
    )
    assert inference.sensitivity(found).empty and inference.sensitivity_removed(found).empty
    assert inference.oracle_gap_recovered(found).empty
    table = inference.area(found)
    np.testing.assert_allclose(table["mean"], inference.summary(found)["mean"])


# ---------------------------------------------------------------------------- groups


def test_accuracy_by_group_is_that_of_its_images(predictions, labels):
    group = np.where(np.arange(PEOPLE) % 3 == 0, "x", "y").astype(object)
    group[4] = None  # unknown: left out
    groups = pd.DataFrame({"hair": np.repeat(group, IMAGES)})
    table = inference.accuracy_by_group(
        predictions, METHODS, labels, IDENTITIES, groups, replicates=50
    )
    known = predictions[groups["hair"].notna().to_numpy()[predictions["row"]]]
    for (test, level), part in known.groupby(["test", "level"]):
        shares, gaps = [], []
        for _, run in part.groupby("seed"):
            truth, where = labels[run["row"]], groups["hair"][run["row"]].to_numpy(dtype=str)
            own = (run["cid"].gt(0) == (truth == 1)).groupby(where).mean()
            shares.append(own)
            gaps.append(np.ptp(own))
        expected = pd.DataFrame(shares).mean().to_dict() | {"gap": np.mean(gaps)}
        for name, value in expected.items():
            line = row(table, test=test, column="hair", group=name, level=level, method="cid")
            assert line["mean"] == pytest.approx(value)
            erm = row(table, test=test, column="hair", group=name, level=level, method="erm")
            assert line["mean_difference"] == pytest.approx(value - erm["mean"])
            assert line["people"] == {"x": 4, "y": 7, "gap": 4}[name]
    assert np.isfinite(table[["low", "high"]]).all(axis=None)


def test_no_demographic_columns_give_an_empty_table(predictions, labels):
    assert inference.accuracy_by_group(predictions, METHODS, labels, IDENTITIES, {}).empty
