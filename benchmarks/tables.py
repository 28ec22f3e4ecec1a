"""Fill the tables of `benchmarks/README.md` from the measured files beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def table(results: pd.DataFrame) -> str:
    lines = [
        "| part | case | against | its time / ours [range] | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for r in results.fillna("").to_dict("records"):
        ratio = f"{r['reference / ours']:.3g} [{r['low']:.3g}, {r['high']:.3g}]"
        note = f" ({r['note']})" if r["note"] else ""
        lines.append(
            f"| {r['part']} | {r['case']}{note} | {r['reference']} | {ratio} | {r['target']} | {r['met']} |"
        )
    return "\n".join(lines)


def errors(near: pd.DataFrame) -> str:
    lines = [
        "| density from | error of a weight, median | 95 % of the samples below | rank correlation |",
        "|---|---|---|---|",
    ]
    for kept, middle, most, rank in near.itertuples(index=False):
        lines.append(f"| {kept} | {middle:.1%} | {most:.1%} | {rank:.3f} |")
    return "\n".join(lines)


def stages(profile: pd.DataFrame) -> str:
    """The profile with the cells of a stage added up."""
    total = profile.loc[profile["stage"] == "total", "seconds"].iloc[0]
    parts = profile[profile["stage"] != "total"]
    kinds = parts.groupby(parts["stage"].str.split("@").str[0], sort=False)["seconds"]
    lines = ["| stage | runs | seconds | share |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {len(times)} | {times.sum():.0f} | {times.sum() / total:.0%} |"
        for name, times in kinds
    ]
    return "\n".join([*lines, f"| all | {len(parts)} | {total:.0f} | |"])


def kernels(moves: pd.DataFrame) -> str:
    """How far means over the bias range and differences to ERM moved, and the verdicts, run by run."""
    lines = [
        "| study, from | against | processor | embeddings | numbers | median | 99 % below | largest | verdicts turned | of them unsaid |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    asked = ["study", "first", "against", "processor"]
    for (study, first, against, processor), rows in moves.groupby(asked):
        by_table = rows.set_index("table")
        area = by_table.loc["area"]
        verdicts = by_table.loc["verdicts"]
        other = {"kernels": "an old processor's", "threads": "one thread"}[against]
        cells = [
            f"{study}, {first}",
            other,
            processor,
            f"{by_table.loc['embeddings', 'largest']:.1g}",
        ]
        cells += [f"{area['numbers']:.0f}"]
        cells += [f"{area[column]:.2g}" for column in ("median", "p99", "largest")]
        cells += [f"{verdicts['turned']:.0f} of {verdicts['numbers']:.0f}"]
        lines.append("| " + " | ".join([*cells, f"{verdicts['unsaid']:.0f}"]) + " |")
    return "\n".join(lines)


def label_issues(found: pd.DataFrame) -> str:
    """Gains over plain heads, a column a share of wrong labels, and how well wrong labels are found."""
    shares = found["share"].unique()
    most = shares.max()
    lines = [
        "| training | "
        + " | ".join(f"{100 * share:.0f} % wrong" for share in shares)
        + f" | precision, recall at {100 * most:.0f} % |",
        "|---" * (len(shares) + 2) + "|",
    ]
    for method, rows in found.groupby("method", sort=False):
        rows = rows.set_index("share")
        if method == "plain":
            cells = [f"{rows.loc[share, 'accuracy']:.1f} %" for share in shares]
        else:
            cells = [
                f"{rows.loc[share, 'gain']:+.2f} ± {rows.loc[share, 'error']:.2f}"
                for share in shares
            ]
        found_at = rows.loc[most, ["precision", "recall"]]
        cells.append("" if found_at.isna().any() else ", ".join(f"{v:.2f}" for v in found_at))
        lines.append("| " + " | ".join([method, *cells]).replace("-", "−") + " |")
    return "\n".join(lines)


TARGETS = {  # times as fast, and 95 % of the weights within
    ("density", 500_000, 128): (6, 0.05),
    ("density", 500_000, 512): (15, 0.02),
    ("posterior", 100_000, 128): (6, 0.01),
    ("posterior", 500_000, 128): (25, 0.01),
}


def large(found: pd.DataFrame) -> str:
    """Densities and posteriors by cells: speed, errors of weights, and what tells of the errors."""
    lines = [
        "| part | images of a class, d | exact time / by cells [range] | error of a weight, median | 95 % below | largest | standard error, median | intervals of 95 % hold | recall | target | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found.to_dict("records"):
        n, d = int(row["n"]), int(row["d"])
        times, within = TARGETS.get((row["part"], n, d), (None, None))
        target = f"at least {times} x, 95 % within {within:.0%}" if times else ""
        met = [row["ratio"] >= times, row["95 %"] <= within] if times else []
        cells = [row["part"], f"{n:,}, {d}"]
        cells += [f"{row['ratio']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"]
        cells += [f"{row[name]:.2%}" for name in ("median", "95 %", "largest")]
        told = [(row["error"], ".2%"), (row["held"], ".1%"), (row.get("recall"), ".2%")]
        cells += ["" if pd.isna(value) else f"{value:{form}}" for value, form in told]
        cells += [target, "/".join("yes" if one else "no" for one in met)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill(page: str, name: str, text: str) -> str:
    """The page with what stands between its marks of that name replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def filled(page: str) -> str:
    """The page with its tables made anew."""
    results = table(pd.read_csv(HERE / "results.csv"))
    page = fill(page, "table", f"{results}\n\n{(HERE / 'machine.txt').read_text().strip()}")
    page = fill(page, "approximations", errors(pd.read_csv(HERE / "approximations.csv")))
    page = fill(page, "kernels", kernels(pd.read_csv(HERE / "kernels.csv")))
    found = pd.read_csv(HERE / "label_issues.csv")
    page = fill(page, "label issues", label_issues(found))
    page = fill(page, "large", large(pd.read_csv(HERE / "large.csv")))
    return fill(page, "profile", stages(pd.read_csv(HERE / "profile.csv")))


def write() -> str:
    """Fill the page; the table of speeds is returned."""
    page = HERE / "README.md"
    page.write_text(filled(page.read_text()))
    return table(pd.read_csv(HERE / "results.csv"))


if __name__ == "__main__":
    write()
