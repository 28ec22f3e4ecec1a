"""Intervals against brute force and hand-worked cases; about 10 seconds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from study.results import inference, metrics

LEVELS, SEEDS, METHODS = (0.0, 0.5, 1.0), 5, ["erm", "cid", "oracle"]
PEOPLE, IMAGES = 12, 10
IDENTITIES = np.repeat([f"p{k:02d}" for k in range(PEOPLE)], IMAGES)


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
                minority=(labels == np.arange(len(labels)) // IMAGES % 2).astype(float),
                test=np.where(unseen[np.arange(len(labels)) // IMAGES], "unseen", "seen"),
                **{m: np.round(rng.normal(2 * labels - 1, 1.2 + level), 1) for m in METHODS},
            )
        )
    return pd.concat(tables).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def estimates(predictions, labels):
    return inference.estimate(predictions, METHODS, labels, IDENTITIES, replicates=200)


def row(table, **where):
    found = table.loc[(table[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(found) == 1
    return found.iloc[0]


# ---------------------------------------------------------------------------- resampling


def test_points_are_the_means_of_the_runs(estimates, predictions, labels):
    runs = metrics.evaluate(predictions, METHODS, labels, IDENTITIES)
    means = runs.groupby(["test", "level", "method"])[list(metrics.OF_TEST_SETS)].mean()
    table = inference.summary(estimates)
    assert len(table) == 2 * len(metrics.METRICS) * len(LEVELS) * len(METHODS)
    table = table[table["metric"].isin(metrics.OF_TEST_SETS)]
    for test, metric, level, method, mean in table.iloc[:, :5].itertuples(index=False):
        assert mean == means.loc[(test, level, method), metric]


def test_counts_are_as_good_as_copies(predictions, labels):
    """Every metric of a run, with people physically repeated under new names."""
    rng = np.random.default_rng(1)
    counts = rng.multinomial(PEOPLE, np.full(PEOPLE, 1 / PEOPLE), size=6)
    names = np.unique(IDENTITIES)
    every = metrics.iterate_test_sets(predictions, METHODS, labels, IDENTITIES, "level")
    for (level, seed, test), test_set in itertools.islice(every, 0, None, 3):
        drawn = counts[:, np.searchsorted(names, test_set.people)]
        own = predictions[(predictions["level"] == level) & (predictions["seed"] == seed)]
        own = own[own["test"] == test]
        found = {k: metrics.METRICS[k].measure(test_set, drawn) for k in metrics.OF_TEST_SETS}
        for draw in range(6):
            times = counts[draw][own["row"] // IMAGES]
            if not times.any():
                continue
            copies = own.iloc[np.repeat(np.arange(len(own)), times)]
            copy = np.concatenate([np.arange(n) for n in times])
            people = [f"{IDENTITIES[r]}-{c}" for r, c in zip(copies["row"], copy, strict=True)]
            truth = labels[copies["row"]]
            copies = copies.assign(row=range(len(copies)))
            expected = metrics.evaluate(copies, METHODS, truth, people).set_index("method")
            for name, values in found.items():
                np.testing.assert_allclose(
                    values[draw], expected.loc[METHODS, name], atol=1e-9, err_msg=f"{draw} {name}"
                )


def test_the_three_covariances_of_a_mean_by_hand():
    """Two seeds and many people: y = seed + person, and then a pair's own noise beside them."""
    rng = np.random.default_rng(0)
    seed, person, pair = np.array([-1.0, 1.0]), rng.normal(0, 2, 30), rng.normal(0, 1, (2, 30))
    counts = np.vstack([np.ones(30), rng.multinomial(30, np.full(30, 1 / 30), size=20_000)])

    def found(y):  # (seed, person), to the three variances of its mean
        values = (np.einsum("rp,sp->rs", counts, y) / 30)[..., None, None]
        point, covariance = inference._mean_and_covariances(values, 30)
        assert point[0, 0] == pytest.approx(y.mean())
        return covariance[:, 0, 0, 0, 0]

    both = found(seed[:, None] + person)
    np.testing.assert_allclose(both, [1.0, person.var(ddof=1) / 30, 0], rtol=0.03, atol=1e-12)
    pair -= pair.mean(axis=0)
    with_noise = found(seed[:, None] + person + pair)
    # Of the residuals r_sp: sum r^2 / (P (P - 1)) / (S (S - 1)), centred within a seed.
    own = (pair - pair.mean(axis=1, keepdims=True)) ** 2
    assert with_noise[2] == pytest.approx(own.sum() / (30 * 29) / 2, rel=0.03)
    assert with_noise[1] == pytest.approx(both[1], rel=0.03)  # noise that sums to 0 over the seeds


def test_what_is_undefined_in_a_run_or_a_resample_says_nothing_of_it():
    values = np.random.default_rng(0).normal(size=(51, 4, 1, 2))
    values[:, 3, 0, 0] = np.nan  # a metric that one seed does not have
    values[7, 1, 0, 0] = np.nan
    point, covariance = inference._mean_and_covariances(values, 10)
    three, alone = inference._mean_and_covariances(np.delete(values, 3, axis=1), 10)
    assert point[0, 0] == pytest.approx(three[0, 0])
    assert covariance[1, 0, 0, 0, 0] == pytest.approx(alone[1, 0, 0, 0, 0])
    assert np.isfinite(covariance).all()
    values[..., 0] = np.nan
    point, covariance = inference._mean_and_covariances(values, 10)
    assert np.isnan(point[0, 0]) and np.isnan(covariance[:, 0, 0]).all()
    assert np.isfinite(covariance[:, 0, 1, 0, 1]).all()


def test_the_same_seed_gives_the_same_bytes(estimates, predictions, labels):
    again = inference.estimate(predictions, METHODS, labels, IDENTITIES, replicates=200)
    other = inference.estimate(predictions, METHODS, labels, IDENTITIES, replicates=200, seed=1)
    key = ("seen", "worst_decile")
    assert again.covariance[key].tobytes() == estimates.covariance[key].tobytes()
    assert (other.covariance[key] != estimates.covariance[key]).any()


def test_kept_covariances_are_not_computed_again(
    estimates, predictions, labels, tmp_path, monkeypatch
):
    """They are the same bytes, and stand for nothing that would be drawn otherwise."""
    names = ["accuracy", "worst_decile"]

    def drawn(predictions=predictions, labels=labels, identities=IDENTITIES, **options):
        options = {"metrics": names, "replicates": 200, "folder": tmp_path} | options
        return inference.estimate(predictions, METHODS, labels, identities, **options)

    first = drawn()
    monkeypatch.setattr(inference, "_estimate_measures", lambda *_: pytest.fail("drawn again"))
    again = drawn()
    for key in again.covariance:
        assert again.covariance[key].tobytes() == estimates.covariance[key].tobytes()
        assert again.point[key].tobytes() == first.point[key].tobytes()
    other = np.char.replace(IDENTITIES, "p00", "p01")
    for change in (
        {"seed": 1},
        {"replicates": 100},
        {"metrics": ["accuracy"]},
        {"labels": 1 - labels},
        {"identities": other},
        {"predictions": predictions.assign(cid=predictions["cid"] + 1)},
        {"predictions": predictions.assign(minority=1 - predictions["minority"])},
    ):
        with pytest.raises(pytest.fail.Exception, match="drawn again"):
            drawn(**change)


def test_values_of_a_setting_take_the_place_of_levels(predictions, labels):
    """The same numbers under their names, in order of appearance, whatever the order of the names."""
    part = predictions[predictions["level"] > 0].sort_values("level", kind="stable")
    named = part.assign(value=part["level"].map({0.5: "b", 1.0: "a"})).drop(columns="level")
    about = (METHODS, labels, IDENTITIES)
    options = {"metrics": ["accuracy", "tpr_gap"], "replicates": 50}
    found = inference.estimate(named, *about, condition="value", **options)
    expected = inference.estimate(part, *about, **options)
    for functional in (inference.summary, inference.difference):
        table = functional(found)
        assert list(table)[:4] == ["test", "metric", "value", "method"]
        back = table.assign(value=table["value"].map({"b": 0.5, "a": 1.0}))
        pd.testing.assert_frame_equal(
            back.rename(columns={"value": "level"}), functional(expected), check_exact=True
        )


@pytest.mark.parametrize("source", ["seed", "identity"])
def test_seeds_and_identities_are_both_redrawn(source):
    """Where one of them decides everything, the variance is that of a mean of as many."""
    rows = pd.DataFrame({"seed": np.arange(8 * 200) // 200, "row": np.arange(8 * 200) % 200})
    rows = rows.assign(level=0.0, test="seen", person=rows["row"] // 20)
    unit = rows["seed" if source == "seed" else "person"]
    right = rows["row"] % 20 < 8 + unit  # person or seed u: 8 + u of 20 images right
    predictions = rows.assign(erm=np.where(right, 1.0, -1.0))
    found = inference.estimate(
        predictions, ["erm"], np.ones(200, int), np.arange(200) // 20,
        metrics=["accuracy"], replicates=4000,
    )  # fmt: skip
    means = right.groupby(unit).mean()
    three = found.covariance["seen", "accuracy"][:, 0, 0, 0, 0]
    expected = means.var(ddof=1) / len(means)
    assert inference.variance(three) == pytest.approx(expected, rel=0.05)
    at = ["seed", "identity"].index(source)
    assert three[at] == pytest.approx(expected, rel=0.05)
    assert three[1 - at] == pytest.approx(0, abs=1e-12) and three[2] == pytest.approx(0, abs=1e-12)


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
        inference.estimate(change(predictions), METHODS, labels, IDENTITIES, **options)


def test_gains_under_two_conditions_are_compared_in_pairs(predictions, labels):
    """By hand: the covariance of two means is that of the sum less those of the parts."""
    study = inference.estimate(
        predictions, METHODS, labels, IDENTITIES, metrics=["accuracy"], replicates=50
    )
    first, *others = study.levels
    found = inference.difference_of_gains(study, first)
    assert list(found) == list(inference.difference(study))
    assert set(found["level"]) == set(others)
    key, erm, cid = ("seen", "accuracy"), METHODS.index("erm"), METHODS.index("cid")
    row = found.query("test == 'seen' and method == 'cid'").iloc[-1]
    last, point = len(study.levels) - 1, study.point[key]
    expected = (point[last, cid] - point[last, erm]) - (point[0, cid] - point[0, erm])
    assert row["level"] == study.levels[-1] and row["mean"] == pytest.approx(expected)
    signs = np.zeros(point.shape)
    signs[last, [cid, erm]], signs[0, [cid, erm]] = (1, -1), (-1, 1)
    three = np.einsum("lm,xlmkn,kn->x", signs, study.covariance[key], signs)
    told = inference.interval(
        expected, np.sqrt(inference.variance(three)), study.degrees_of_freedom(key)
    )
    assert (row["low"], row["high"]) == pytest.approx((told["low"], told["high"]))
    with pytest.raises(ValueError, match="0.25"):
        inference.difference_of_gains(study, 0.25)


# ---------------------------------------------------------------------------- intervals


def test_interval_p_value_and_detectable_effect_agree():
    se = np.array([0.1, 0.2, 0.05])
    found = inference.interval([0.0, 0.3, 0.2], se, 10)
    np.testing.assert_allclose(found["high"] - found["mean"], stats.t.ppf(0.975, 10) * se)
    np.testing.assert_allclose(found["p"], 2 * stats.t.sf([0, 0.3, 0.2] / se, 10))
    at_the_edge = inference.interval(found["high"][0], se[0], 10)
    assert at_the_edge["p"] == pytest.approx(0.05) and at_the_edge["low"] == pytest.approx(0)
    quantiles = stats.t.ppf(0.975, 10) + stats.t.ppf(0.8, 10)
    np.testing.assert_allclose(found["detectable"], quantiles * se)
    nothing = inference.interval(np.nan, np.nan, 10)
    assert all(np.isnan(value) for value in nothing.values())


def test_the_variance_is_never_less_than_that_of_seeds_or_of_people():
    assert inference.variance(np.array([3.0, 2.0, 1.0])) == 4
    assert inference.variance(np.array([3.0, 2.0, 2.5])) == 3
    assert inference.variance(np.array([1.0, 2.0, 1.5])) == 2


def test_equal_methods_differ_by_nothing():
    found = inference.interval([0.0, 1e-17, 0.1], np.zeros(3), 5)
    assert found["p"][:2].tolist() == [1, 1] and found["p"][2] < 1e-20


@pytest.mark.parametrize("only", ["seed", "identity"])
def test_one_seed_or_one_identity_leaves_the_interval_unbounded(predictions, labels, only):
    alone = predictions["seed"] == 0 if only == "seed" else predictions["row"] // IMAGES == 7
    part = predictions[alone & (predictions["test"] == "seen")]
    if only == "identity":
        part = part[part["seed"].isin([0, 1])]
    found = inference.estimate(part, METHODS, labels, IDENTITIES, replicates=20)
    table = inference.difference(found).query("metric == 'accuracy'")
    assert np.isfinite(table["mean"]).all() and (table["p"] == 1).all()
    assert (table["low"] == -np.inf).all() and (table["high"] == np.inf).all()
    assert inference.oracle_gap_recovered(found)["mean"].isna().all()


def test_fieller_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside, n = 0, 20
    for _ in range(1000):
        b = rng.normal(2, 1, size=n)
        a = 0.3 * b + rng.normal(0, 1, size=n)
        covariance = np.stack([np.cov(a, b) / n, np.zeros((2, 2)), np.zeros((2, 2))])
        found = inference.fieller(a.mean(), b.mean(), covariance, n - 1)
        inside += found["low"] <= 0.3 <= found["high"]
    assert inside / 1000 == pytest.approx(0.95, abs=0.02)


def test_a_ratio_is_undefined_where_the_denominator_may_be_zero():
    one, none = np.ones((2, 2)), np.zeros((2, 2))
    assert np.isnan(inference.fieller(1.0, 0.5, np.stack([one, none, none]), 19)["mean"])
    assert np.isnan(inference.fieller(1.0, 0.5, np.stack([none, one, none]), 19)["mean"])
    assert np.isnan(inference.fieller(0.0, 0.0, np.stack([none] * 3), 19)["mean"])
    both = np.array(
        [[4.0, 2.0], [2.0, 1.0]]
    )  # of two estimates that vary as one, the ratio does not
    found = inference.fieller(20.0, 10.0, np.stack([both, none, none]), 19)
    assert [found[k] for k in ("mean", "low", "high")] == pytest.approx([2, 2, 2])


def test_the_interval_of_a_ratio_holds_that_of_the_largest_variance():
    rng, none = np.random.default_rng(0), np.zeros((2, 2))
    seed, person = (c @ c.T for c in rng.normal(0, 0.1, (2, 2, 2)))
    ends = [inference.fieller(1.0, 2.0, np.stack([c, none, none]), 19) for c in (seed, person)]
    both = inference.fieller(1.0, 2.0, np.stack([seed, person, none]), 19)
    assert both["low"] < min(e["low"] for e in ends) and both["high"] > max(e["high"] for e in ends)


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
    covariance = {}
    for key in point:
        noise = (shared + rng.normal(0, 1e-3, size=(400, 3, 3))).reshape(400, 9)
        seed = np.cov(noise.T).reshape(3, 3, 3, 3)
        covariance[key] = np.stack([seed, 0 * seed, 0 * seed])
    people = dict.fromkeys(point, 50)
    return inference.Estimates(
        levels, METHODS, pd.DataFrame(), point, covariance, 10, people, people
    )


def test_comparisons_are_paired(study):
    where = {"test": "seen", "metric": "accuracy", "level": 1.0, "method": "cid"}
    alone = row(inference.summary(study), **where)
    paired = row(inference.difference(study), **where)
    assert alone["mean"] == pytest.approx(0.85) and paired["mean"] == pytest.approx(0.05)
    assert paired["high"] - paired["low"] < 0.1 * (alone["high"] - alone["low"])


def test_differences_are_corrected_over_methods_and_levels(study):
    table = inference.difference(study)
    assert list(table)[4:] == ["mean", "low", "high", "p", "detectable", "p_holm", "reference"]
    assert set(table["reference"]) == {"erm"}
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
    seed = study.covariance["seen", "accuracy"][0][:, 0, :, 0]
    slope = np.array([-1.0, 0.0, 1.0])  # of the levels 0, .5 and 1
    se = np.sqrt(slope @ seed @ slope)
    assert erm["high"] - erm["mean"] == pytest.approx(stats.t.ppf(0.975, 9) * se)


def test_area_is_the_trapezoids_by_the_range():
    levels = np.array([0.0, 0.5, 0.8, 0.9])
    curve = np.array([0.9, 0.8, 0.5, 0.2])
    weights = inference.area_weights(levels)
    assert weights @ curve == pytest.approx(np.trapezoid(curve, levels) / 0.9)
    assert inference.area_weights([0.3]) == 1 and inference.slope_weights([0.3]).shape == (0, 1)


def test_area_and_its_difference(study):
    cid = row(inference.area(study), metric="identity_sd", method="cid")
    assert cid[["mean", "mean_difference"]].tolist() == pytest.approx([0.225, -0.025])


def test_an_interval_of_a_lead_leaves_out_0_where_holm_says_so(estimates):
    lead = inference.lead(estimates, "cid")
    lead = lead[lead["p"].notna()]
    clear = (lead["low"] > 0) | (lead["high"] < 0)
    assert (clear == (lead["p_holm"] < 0.05)).all() and (lead["alpha"] <= 0.05).all()


def test_a_method_is_compared_with_its_reference(study):
    told = replace(study, references={"cid": "oracle"})
    area = inference.area(told)
    own = row(area, method="cid", metric="accuracy", test="seen")
    lead = row(inference.lead(study, "cid"), method="oracle", metric="accuracy", test="seen")
    assert own["reference"] == "oracle" and own["mean_difference"] == pytest.approx(lead["mean"])
    unchanged = row(area, method="oracle", metric="accuracy", test="seen")
    assert unchanged["reference"] == "erm"
    assert "oracle" not in set(inference.lead(told, "cid")["method"])


def test_holms_levels_reject_what_holms_p_values_reject():
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        for p in rng.random((200, size)) ** 4:
            levels = inference.holm_levels(p)
            assert ((p < levels) == (inference.holm(p) < 0.05)).all()
            assert (levels >= 0.05 / size).all() and (levels <= 0.05).all()
    assert inference.holm_levels([0.01, np.nan, 0.04]).tolist() == pytest.approx(
        [0.025, np.nan, 0.05], nan_ok=True
    )
    assert inference.holm_levels([0.03, 0.04]).tolist() == [0.025, 0.025]  # it stops at the first


def test_an_interval_can_have_another_level():
    wide = inference.interval(0.02, 0.01, 10, alpha=0.01)
    plain = inference.interval(0.02, 0.01, 10)
    again = inference.at_level(plain["low"], plain["high"], 10, 0.01)
    assert [again[k] for k in ("low", "high", "detectable")] == pytest.approx(
        [float(wide[k]) for k in ("low", "high", "detectable")]
    )
    assert wide["low"] < plain["low"] and wide["detectable"] > plain["detectable"]
    assert inference.at_level(-np.inf, np.inf, 0, 0.01)["low"] == -np.inf


def test_a_lead_is_the_paired_difference_the_other_way(study):
    area, lead = inference.area(study), inference.lead(study, "cid")
    assert set(lead["method"]) == {"oracle"}  # the lead over ERM is the gain, of which area speaks
    other = inference.lead(study, "oracle")
    one = row(lead, method="oracle", metric="accuracy", test="seen")
    two = row(other, method="cid", metric="accuracy", test="seen")
    assert [one["low"], one["high"]] == pytest.approx([-two["high"], -two["low"]])
    gains = area.set_index(["test", "metric", "method"])["mean"]
    for _, found in lead.iterrows():
        place = found["test"], found["metric"]
        expected = gains[(*place, "cid")] - gains[(*place, found["method"])]
        assert found["mean"] == pytest.approx(expected, nan_ok=True)
    assert "cid" not in set(lead["method"]) and "level" not in lead


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
    turned = replace(study, point=worse)
    assert inference.oracle_gap_recovered(turned)["mean"].isna().all()
    assert inference.sensitivity_removed(turned)["mean"].isna().all()


def test_the_share_of_what_the_oracle_takes_off_the_slope(study):
    table = inference.sensitivity_removed(study)
    assert set(table["method"]) == {"cid"}
    for metric in ("accuracy", "identity_sd"):
        cid = row(table, metric=metric, method="cid")
        assert cid["mean"] == pytest.approx(0.5) and cid["low"] < 0.5 < cid["high"]


def test_power_is_of_the_components(predictions, labels):
    found = inference.estimate(
        predictions, METHODS, labels, IDENTITIES, metrics=["accuracy"], replicates=100
    )
    line = row(inference.power(found), test="seen", metric="accuracy", method="cid")
    assert (line["seeds"], line["people"]) == (SEEDS, PEOPLE)
    own = row(inference.area(found), test="seen", metric="accuracy", method="cid")
    assert line["detectable"] == pytest.approx(own["detectable"])
    half = (own["high_difference"] - own["low_difference"]) / 2
    assert line["se"] == pytest.approx(half / stats.t.ppf(0.975, SEEDS - 1))
    # As many again, as predicted from the components; with four times as many half as much.
    given = dict(seed_sd=0.02, person_sd=0.03, pair_sd=0.1)
    se = np.sqrt(0.02**2 / 9 + 0.03**2 / 16 + 0.1**2 / 144)
    quantiles = stats.t.ppf(0.975, 8) + stats.t.ppf(0.8, 8)
    assert inference.detectable(given, 9, 16) == pytest.approx(quantiles * se)
    assert inference.detectable(given, 1, 16) == np.inf
    se = np.sqrt(0.02**2 / 9 + 0.03**2 / 16 + 0.1**2 / 16)  # 9 cohorts
    assert inference.detectable(given, 9, 16, 16) == pytest.approx(quantiles * se)


def test_what_is_undefined_at_one_level_leaves_the_others(predictions, labels):
    part = predictions[(predictions["level"] > 0) | (labels[predictions["row"]] == 1)]
    options = {"metrics": ["auroc"], "replicates": 50}
    found = inference.estimate(part, METHODS, labels, IDENTITIES, **options)
    whole = inference.estimate(predictions, METHODS, labels, IDENTITIES, **options)
    assert inference.area(found)["mean"].isna().all()
    for functional in (inference.summary, inference.difference):
        one, two = (functional(e).query("level > 0").iloc[:, :8] for e in (found, whole))
        pd.testing.assert_frame_equal(one.reset_index(drop=True), two.reset_index(drop=True))
    recovered = inference.oracle_gap_recovered(found)
    assert recovered[recovered["level"].isna()]["mean"].isna().all()


def test_what_one_seed_alone_defines_has_no_bounds(predictions, labels):
    seed_0 = (predictions["seed"] == 0) | (labels[predictions["row"]] == 1)
    found = inference.estimate(
        predictions[seed_0], METHODS, labels, IDENTITIES, metrics=["auroc"], replicates=50
    )
    table = inference.difference(found)
    assert np.isfinite(table["mean"]).all() and (table["high"] == np.inf).all()
    assert (table["p"] == 1).all()


def test_a_mean_over_some_seeds_varies_as_a_mean_of_so_many():
    """Of 6 seeds 3 define the metric: all is as if the others were not there."""
    values = np.random.default_rng(0).normal(size=(50, 6, 1, 2))
    part = values[:, :3].copy()
    values[:, 3:] = np.nan
    for one, two in zip(
        inference._mean_and_covariances(values, 9),
        inference._mean_and_covariances(part, 9),
        strict=True,
    ):
        np.testing.assert_allclose(one, two)


def test_one_level_has_an_area_but_no_slope(predictions, labels):
    part = predictions[predictions["level"] == 0.5]
    found = inference.estimate(
        part, METHODS[:2], labels, IDENTITIES, metrics=["accuracy"], replicates=20
    )
    assert inference.sensitivity(found).empty and inference.sensitivity_removed(found).empty
    assert inference.oracle_gap_recovered(found).empty
    assert len(inference.power(found)) == 2
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
