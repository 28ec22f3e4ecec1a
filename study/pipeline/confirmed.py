"""Whether what the protocols of CelebA's last quarter claim was found: computed from their reports.

These claims are not about gains over ERM, which :mod:`study.results.claims` judges, but about the audit, the
choice of weights and trust in labels. Their limits are those of the protocols' notes and were written here
before any of these studies was run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study.pipeline.reproduced import REPORTS
from study.results.tables import markdown_table, points
from study.results.titles import method_title

PREFIX = "celeba-quarter-"  # of the studies
AS_IT_IS = "as it is"  # the study's own proxy, in the table of audits
CHOSEN_AMONG = ("erm", "cid", "surprise")
BEHIND = 0.003  # of accuracy: what a claim allows
RANDOM = "random"  # the ablation of wrong labels
FLIPPED = (0.05, 0.1)
TRUSTED = "surprise-trusted"


@dataclass(frozen=True)
class Limits:
    """What a protocol claims of the audit."""

    rank: float  # correlation of estimate and truth over methods, at least
    error: float  # mean error of the balanced accuracy, at most, either way
    covered: float = 0.9  # share of intervals that hold the truth, at least
    made: bool = True  # the bias is made: plain accuracy ranks worse, and no audit is distrusted


MADE = Limits(rank=0.9, error=0.01)
AS_FOUND = Limits(rank=0.7, error=0.02, made=False)


@dataclass(frozen=True)
class Found:
    """One claim beside what was found."""

    claim: str
    value: str
    holds: bool


def of_audit(quality: pd.DataFrame, limits: Limits) -> list[Found]:
    """Judge the audit by its row of the report's table ``audit-quality``."""
    row = quality[quality["proxy"] == AS_IT_IS].iloc[0]
    rank = row["rank_balanced"]
    plain = row["plain_rank_balanced"]
    error = row["error_balanced"]
    found = [
        Found(
            f"audit: rank correlation with the truth over methods at least {limits.rank:g}",
            f"{rank:.2f}",
            rank >= limits.rank,
        ),
        Found(
            f"audit: mean error at most {100 * limits.error:g} points either way",
            _points(error),
            abs(error) <= limits.error,
        ),
        Found(
            f"audit: at least {limits.covered:.0%} of its intervals hold the truth",
            f"{row['covered_balanced']:.0%}",
            row["covered_balanced"] >= limits.covered,
        ),
    ]
    if limits.made:
        found += [
            Found(
                "audit: a higher rank correlation than plain accuracy",
                f"{rank:.2f}, plain {plain:.2f}",
                rank > plain,
            ),
            Found(
                "audit: none is distrusted because of the proxy",
                f"{row['distrusted']:.0%}",
                row["distrusted"] == 0,
            ),
        ]
    return found


def of_choice(area: pd.DataFrame) -> list[Found]:
    """Judge audited weights by accuracy on seen people: the report's table ``area``."""
    rows = _accuracy(area).set_index("method")
    behind = rows.loc["audited", "mean"] - rows.loc[list(CHOSEN_AMONG), "mean"].max()
    gain = rows.loc["audited"]
    difference = gain[["mean_difference", "low_difference", "high_difference"]]
    return [
        Found(
            f"audited weights: at most {100 * BEHIND:g} points below the best of ERM, CID and label surprise",
            _points(behind),
            behind >= -BEHIND,
        ),
        Found(
            f"audited weights: not clearly below {method_title(gain['reference'])}",
            points(*difference),
            gain["high_difference"] >= 0,
        ),
    ]


def of_trust(gains: pd.DataFrame) -> list[Found]:
    """Judge label surprise times trust by the ablation of wrong labels: gains over the same reference."""
    rows = _accuracy(gains).set_index(["value", "method"])
    clean = rows.loc[(0.0, TRUSTED), "mean"] - rows.loc[(0.0, "surprise"), "mean"]
    found = [
        Found(
            f"surprise × trust, clean labels: at most {100 * BEHIND:g} points below label surprise",
            _points(clean),
            clean >= -BEHIND,
        )
    ]
    for share in FLIPPED:
        trusted = rows.loc[(share, TRUSTED)]
        surprise = rows.loc[(share, "surprise")]
        better = trusted["mean"] - surprise["mean"]
        # The table has no interval of this difference; that of two independent gains is wider.
        half = math.hypot(_half(trusted), _half(surprise))
        found += [
            Found(
                f"surprise × trust, {share:.0%} wrong: above {method_title(trusted['reference'])}",
                points(*trusted[["mean", "low", "high"]]),
                trusted["low"] > 0,
            ),
            Found(
                f"surprise × trust, {share:.0%} wrong: above label surprise",
                points(better, better - half, better + half),
                better > half,
            ),
        ]
    return found


def left_alone(names: Iterable[str], reports: Path = REPORTS) -> str:
    """A Markdown table of these claims, one row a claim, of the studies that have a report."""
    rows = []
    for name in sorted(name for name in names if name.startswith(PREFIX)):
        folder = reports / name
        limits = AS_FOUND if "natural" in name else MADE
        found = [
            *of_audit(pd.read_csv(folder / "audit-quality.csv"), limits),
            *of_choice(pd.read_csv(folder / "area.csv")),
            *of_trust(pd.read_csv(folder / f"ablate-{RANDOM}.csv")),
        ]
        first = f"`{name}`"
        for one in found:
            rows.append([first, one.claim, one.value, "yes" if one.holds else "**no**"])
            first = ""
    return markdown_table(["study", "claimed", "found", "holds"], rows)


def _accuracy(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["metric"] == "accuracy") & (table["test"] == "seen")]


def _half(row: pd.Series) -> float:
    return (row["high"] - row["low"]) / 2


def _points(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")
