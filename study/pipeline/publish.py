"""Copy the page that was built to ``reports/<study>/``, and its main numbers to where DVC compares them.

It stands apart from :mod:`study.pipeline.report`, so that an edit of the page's code does not publish twice.
Both folders are outputs of the stage, so that DVC runs it again where one of their files is missing or edited.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from study.commands import parser
from study.pipeline.reproduced import FILE, REPORTS, RUN, in_place_of
from study.store import write_text

# `dvc metrics diff` and `dvc plots diff` compare files of one path: it does not name the study.
LATEST = Path("latest")
# Accuracy of plain training and gains of methods: so few that DVC's tables fit a terminal of 120 columns.
SHOWN = {
    "erm": ("accuracy", "erm"),
    "surprise": ("accuracy", "surprise"),
    "cid": ("accuracy", "cid"),
    "oracle": ("accuracy", "oracle"),
    "erm_min": ("minority_accuracy", "erm"),
    "surprise_min": ("minority_accuracy", "surprise"),
}
CHARTS = ("gain-seen.svg", "against-bias-seen.svg")


def publish(run: Path = RUN) -> Path:
    """Copy a report to ``reports/<study>/``, replacing the report that stands there.

    A report that differs from it by rounding alone stays. So does what somebody put beside a report's
    files, such as notes.

    Parameters
    ----------
    run : path
        The report that was built: here, or in the workspace of a study.

    Raises
    ------
    ValueError
        If there is no report to copy, or something else stands in its place.
    """
    settings = run / "params.yaml"
    if not settings.is_file():
        raise ValueError(f"{settings} is missing; run `dvc repro`, which builds the report")
    study = YAML(typ="safe").load(settings)["study"]
    target = REPORTS / study
    draft = REPORTS / f".{study}.partial"
    if target.is_symlink() or REPORTS.is_symlink() or target.resolve().parent != REPORTS.resolve():
        raise ValueError(f"{target} is not a folder in {REPORTS}/; name the study otherwise")
    if target.exists() and any(target.iterdir()) and not (target / FILE).exists():
        raise ValueError(f"{target} is no report, and would be lost; move it away")
    shutil.rmtree(draft, ignore_errors=True)
    if reason := in_place_of(run, target):
        print(reason)
    else:
        shutil.copytree(run, draft)
        _copy_others(target, draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    return target / "index.html"


def _copy_others(target: Path, draft: Path) -> None:
    """Copy what lies in a report's folder and is none of its files into the new one, where nothing has its name."""
    record = target / FILE
    made = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if "files" not in made:  # of a time before there were digests
        return
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target)
        if path.is_file() and path != record and name.as_posix() not in made["files"]:
            if not (draft / name).exists():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, draft / name)


def write_latest(run: Path = RUN) -> None:
    """Write the main numbers and charts of a report to ``latest/``, for DVC's own views."""
    write_text(LATEST / "metrics.json", json.dumps(main_numbers(run), indent=1) + "\n")
    for name in CHARTS:
        chart = run / "figures" / name
        if chart.exists():
            shutil.copyfile(chart, LATEST / name)
        else:
            (LATEST / name).unlink(missing_ok=True)


def main_numbers(run: Path) -> dict[str, float]:
    """At most six numbers of a report: of seen people, at the strongest bias.

    ``erm`` is the accuracy of plain training, in percent; a method is its gain over that, in points. The
    same on minority cells has ``_min`` behind it. All means of all methods are in ``summary.csv`` and
    ``difference.csv``. Where nobody is known, the estimates of the audit for a balanced set stand under other
    names, ``erm_audited`` and so on; none where it refuses.
    """
    if not (run / "summary.csv").exists():
        return _audited_numbers(run)
    accuracy = _strongest(run / "summary.csv")
    gain = _strongest(run / "difference.csv")
    numbers = {}
    for name, (metric, method) in SHOWN.items():
        table = accuracy if method == "erm" else gain
        if (metric, method) in table.index:
            numbers[name] = round(100 * float(table[metric, method]), 2)
    return numbers


def _audited_numbers(run: Path) -> dict[str, float]:
    """What the audit estimates for a balanced set, of the methods of :data:`SHOWN`."""
    if json.loads((run / "about.json").read_text(encoding="utf-8"))["refusal"]:
        return {}
    tables = [pd.read_csv(run / f"{name}.csv") for name in ("audited", "audited-gains")]
    accuracy, gain = (
        table[table["measure"] == "balanced"].set_index("method")["mean"].dropna()
        for table in tables
    )
    numbers = {}
    for method in dict.fromkeys(method for _, method in SHOWN.values()):
        of_method = accuracy if method == "erm" else gain
        if method in of_method.index:
            numbers[f"{method}_audited"] = round(100 * float(of_method[method]), 2)
    return numbers


def _strongest(file: Path) -> pd.Series:
    """Means by metric and method, of seen people at the highest level of bias."""
    table = pd.read_csv(file)
    strongest = table[(table["test"] == "seen") & (table["level"] == table["level"].max())]
    return strongest.set_index(["metric", "method"])["mean"].dropna()


def main(arguments: list[str]) -> None:
    parser("publish").parse_args(arguments)
    page = publish()
    write_latest()
    print(page)
