"""When the protocol of every kept study was fixed: ``studies/protocols.csv``.

A protocol is the resolved content of a study, not a file: moving it, reformatting it or editing a
comment changes nothing. The table holds a digest of that content and the commit in which it first
stood, so that a clone without history knows it too.
"""

import copy
import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from study.commands import parser
from study.methods.registry import all_fit_settings, all_weigh_settings
from study.pipeline import kept
from study.pipeline.git import git
from study.store import write_text

TABLE = kept.STUDIES / "protocols.csv"
# Files from before there was a base lack keys that came later. What such a file meant is the value
# of the first base, but for these.
FIRST_BASE = "base-1"
MEANT = {"proxies": {"controls": [], "trunks": []}}


class Fixed(NamedTuple):
    """Since when a protocol stands; a row of the table, with the name of its study."""

    digest: str  # of the resolved content
    commit: str
    date: str


def content_digest(tree: Mapping, folder: Path = kept.STUDIES) -> str:
    """16 digits of the SHA-256 of complete parameters, whatever the study is called.

    Of their canonical JSON: sorted keys, no spaces.
    """
    base = folder / f"{FIRST_BASE}.yaml"
    filled = YAML(typ="safe").load(base) if base.exists() else {}
    kept.merge(filled, copy.deepcopy(MEANT))
    kept.merge(filled, _without_newer_defaults(tree, filled))
    filled.pop("study", None)
    canonical = json.dumps(filled, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _without_newer_defaults(tree: Mapping, base: Mapping) -> dict:
    """A copy of parameters without settings at their default that methods have got since the base."""
    tree = copy.deepcopy(dict(tree))
    newer = (
        (tree.get("weights", {}), base.get("weights", {}), all_weigh_settings()),
        (
            tree.get("train", {}).get("robust", {}),
            base.get("train", {}).get("robust", {}),
            all_fit_settings(),
        ),
    )
    for section, known, settings in newer:
        for name, (_, default) in settings.items():
            if name not in known and name in section and section[name] == default:
                del section[name]
    return tree


def read(path: Path = TABLE) -> dict[str, Fixed]:
    """The rows of the table by study; none where there is no table."""
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("study"): Fixed(**row) for row in rows}


def fixed(tree: Mapping) -> Fixed | None:
    """Since when the content of these parameters stands as that of their kept study.

    By the table or, where it has no row of this content, by the history. None where the content was
    never committed as that of the study.
    """
    name = tree["study"]
    digest = content_digest(tree)
    row = read().get(name)
    if row and row.digest == digest:
        return row
    return first_stood(name, digest)


def first_stood(name: str, digest: str) -> Fixed | None:
    """The commit since which a study's file, also under earlier names, has had this content.

    None where it does not have it in the last commit, or where the history is cut off.
    """
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        return None
    found = None
    for commit, date, path in _history(kept.STUDIES / f"{name}.yaml"):
        tree = _resolved_at(commit, path)
        if tree is None or content_digest(tree) != digest:
            break
        found = Fixed(digest, commit, date)
    return found


def update() -> list[str]:
    """Write the table; the lines to print say what changed, and which study cannot be entered yet."""
    known = read()
    rows = {}
    lines = []
    for name in kept.names():
        tree = kept.resolve(name)
        digest = content_digest(tree)
        row = known.get(name)
        if row and row.digest != digest and _was_confirmatory_and_run(name):
            raise ValueError(
                f"{kept.STUDIES}/{name}.yaml is not what was committed in {row.commit[:7]}, but the "
                "protocol of a study that was run does not change; give the new one another name"
            )
        if row is None or row.digest != digest:
            row = first_stood(name, digest)
            if row:
                lines.append(f"{name}: since {row.commit[:7]} of {row.date[:10]}")
            else:
                lines.append(
                    f"{name}: not committed as it stands, or the history is shallow; "
                    "commit it, or fetch the history, and run this again"
                )
        if row:
            rows[name] = row
    lines += [f"{name}: gone" for name in sorted(known.keys() - set(kept.names()))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["study", *Fixed._fields])
    writer.writerows([name, *row] for name, row in rows.items())
    write_text(TABLE, stream.getvalue())
    return lines or [f"{TABLE} is up to date"]


def _was_confirmatory_and_run(name: str) -> bool:
    """Whether a report of a confirmatory study of this name is here."""
    made = Path("reports", name, "provenance.json")
    if not made.exists():
        return False
    return json.loads(made.read_text(encoding="utf-8"))["protocol"]["status"] == "confirmatory"


def _history(path: Path) -> list[tuple[str, str, str]]:
    """(commit, date, path there) of all commits that touched a file, the last first, through renames."""
    printed = git("log", "--follow", "--name-only", "--format=%x00%H %cI", "--", str(path))
    commits = []
    for entry in printed.split("\0")[1:]:
        head, *paths = entry.split("\n")
        commit, _, date = head.partition(" ")
        commits += [(commit, date, there) for there in paths if there]
    return commits


def _resolved_at(commit: str, path: str) -> Mapping | None:
    """The parameters in a file of a commit, over the base it names there; None: none can be read."""
    study = _parsed(git("show", f"{commit}:{path}"))
    if not isinstance(study, Mapping):
        return None
    if "base" not in study:
        return study
    base = _parsed(git("show", f"{commit}:{Path(path).parent.as_posix()}/{study['base']}.yaml"))
    if not isinstance(base, Mapping):
        return None
    return kept.merge(base, {key: value for key, value in study.items() if key != "base"})


def _parsed(text: str):
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, RecursionError):
        return None


def main(arguments: list[str]) -> None:
    parser("protocols").parse_args(arguments)
    print("\n".join(update()))
