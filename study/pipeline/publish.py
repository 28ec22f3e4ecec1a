"""Copy the page that was built to ``reports/<study>/``.

It stands apart from :mod:`study.pipeline.report`, so that an edit of the page's code does not publish twice.
"""

import json
import shutil
from pathlib import Path

from ruamel.yaml import YAML

from study.commands import parser
from study.pipeline.reproduced import FILE, REPORTS, RUN, in_place_of
from study.store import digest, write_text

PUBLISHED = Path("build/published.json")


def publish() -> Path:
    """Copy ``build/report/`` to ``reports/<study>/``, replacing the report that stands there.

    A report that differs from it by rounding alone stays.

    Raises
    ------
    ValueError
        If there is no report to copy, or something else stands in its place.
    """
    settings = RUN / "params.yaml"
    if not settings.is_file():
        raise ValueError(f"{settings} is missing; run `dvc repro`, which builds the report")
    study = YAML(typ="safe").load(settings)["study"]
    target = REPORTS / study
    draft = REPORTS / f".{study}.partial"
    if target.is_symlink() or REPORTS.is_symlink() or target.resolve().parent != REPORTS.resolve():
        raise ValueError(f"{target} is not a folder in {REPORTS}/; name the study otherwise")
    if target.exists() and not (target / FILE).exists():
        raise ValueError(f"{target} is no report, and would be lost; move it away")
    shutil.rmtree(draft, ignore_errors=True)
    if reason := in_place_of(RUN, target):
        print(reason)
    else:
        shutil.copytree(RUN, draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    files = sorted(file for file in target.rglob("*") if file.is_file())
    copied = {str(file.relative_to(target)): digest(file.read_bytes())[:16] for file in files}
    write_text(PUBLISHED, json.dumps({str(target): copied}, indent=1) + "\n")
    return target / "index.html"


def main(arguments: list[str]) -> None:
    parser("publish").parse_args(arguments)
    print(publish())
