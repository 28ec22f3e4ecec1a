"""What the protocols of the people left alone claim is judged by their limits, either way."""

import pandas as pd
import pytest

from study.pipeline import confirmed


def quality(**changed):
    row = {
        "proxy": "as it is", "rank_balanced": 0.95, "plain_rank_balanced": -0.5, "error_balanced": -0.006,
        "covered_balanced": 0.93, "distrusted": 0.0,
    }  # fmt: skip
    other = row | {"proxy": "untrained", "rank_balanced": 0.1}
    return pd.DataFrame([other, row | changed])


def holds(found):
    return [one.holds for one in found]


def test_an_audit_within_its_limits_holds_and_the_row_is_that_of_the_studys_proxy():
    found = confirmed.of_audit(quality(), confirmed.MADE)
    assert holds(found) == [True] * 5
    assert [one.value for one in found] == ["0.95", "−0.60", "93%", "0.95, plain -0.50", "0%"]


@pytest.mark.parametrize(
    "changed, place",
    [
        ({"rank_balanced": 0.89}, 0),
        ({"error_balanced": 0.011}, 1),
        ({"error_balanced": -0.011}, 1),
        ({"covered_balanced": 0.89}, 2),
        ({"plain_rank_balanced": 0.96}, 3),
        ({"distrusted": 0.1}, 4),
    ],
)
def test_one_limit_passed_is_one_claim_lost(changed, place):
    found = holds(confirmed.of_audit(quality(**changed), confirmed.MADE))
    assert found == [number != place for number in range(5)]


def test_as_found_less_is_claimed():
    row = quality(rank_balanced=0.7, error_balanced=0.02, plain_rank_balanced=0.9, distrusted=1.0)
    assert holds(confirmed.of_audit(row, confirmed.AS_FOUND)) == [True] * 3


def area(audited, high):
    rows = [
        ("erm", 0.85),
        ("cid", 0.86),
        ("surprise", 0.87),
        ("audited", audited),
        ("oracle", 0.99),
    ]
    table = pd.DataFrame(rows, columns=["method", "mean"])
    table = table.assign(test="seen", metric="accuracy", reference="erm")
    return table.assign(mean_difference=0.0, low_difference=-0.02, high_difference=high)


@pytest.mark.parametrize(
    "audited, high, expected", [(0.868, 0.01, [True, True]), (0.866, -0.001, [False, False])]
)
def test_a_choice_may_stay_behind_by_a_little(audited, high, expected):
    assert holds(confirmed.of_choice(area(audited, high))) == expected


def gains(trusted_low, trusted):
    rows = []
    for share in (0.0, 0.05, 0.1):
        rows.append((share, "surprise", 0.01, 0.004, 0.016))
        rows.append((share, "surprise-trusted", trusted, trusted_low, 2 * trusted - trusted_low))
    table = pd.DataFrame(rows, columns=["value", "method", "mean", "low", "high"])
    return table.assign(test="seen", metric="accuracy", reference="erm")


@pytest.mark.parametrize(
    "low, mean, expected",
    [
        (0.02, 0.03, [True] * 5),
        (0.001, 0.009, [True, True, False, True, False]),
        (-0.01, 0.005, [False, False, False, False, False]),
    ],
)
def test_trust_must_gain_over_plain_training_and_over_label_surprise(low, mean, expected):
    assert holds(confirmed.of_trust(gains(low, mean))) == expected


def test_a_study_without_a_report_has_no_row():
    assert confirmed.left_alone(["celeba-smiling-8", "virtual-people"]).count("\n") == 2
