"""When the protocol of every kept study was fixed: ``studies/protocols.csv``.

A protocol is the resolved content of a study, not a file: moving it, reformatting it or editing a
comment changes nothing. The table holds a digest of that content and the commit in which it first
stood, so that a clone without history knows it too. Its column ``state`` is one of

confirmatory
    Fixed before the first run. Such a row never changes once the study was run.
rerun
    The study was confirmatory, its results are known, and it was run again with other settings. The row
    stands below the confirmatory one, and its note says which settings differ.
exploratory
    Anything else. A study that was run as exploratory stays so.
withdrawn
    A confirmatory protocol that was given up before it was run; its note says why.

python -m study protocols                       enter what is new
python -m study protocols withdraw NAME WHY     give up a protocol that was not run
"""

import copy
import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml.error import YAMLError

from study.commands import parser
from study.methods.registry import all_fit_settings, all_weigh_settings
from study.pipeline import kept, params
from study.pipeline.git import git
from study.pipeline.params import EMBED
from study.store import write_text

TABLE = kept.STUDIES / "protocols.csv"
CONFIRMATORY, RERUN, EXPLORATORY = "confirmatory", "rerun", "exploratory"  # as protocol.status
WITHDRAWN = "withdrawn"
# Files from before there was a base lack keys that came later. What such a file meant is the value
# of the first base, but for these.
FIRST_BASE = "base-1"
MEANT = {"proxies": {"controls": [], "trunks": []}}
# Sections that hold no setting on which a verdict depends.
UNTOLD = ("study", "protocol", "ablation", "ablations")


class Row(NamedTuple):
    """Since when a content stands as that of a study; a row of the table."""

    study: str
    state: str
    digest: str  # of the resolved content
    commit: str
    date: str
    note: str = ""


def content_digest(tree: Mapping, folder: Path = kept.STUDIES) -> str:
    """16 digits of the SHA-256 of complete parameters, whatever the study is called.

    Of their canonical JSON: sorted keys, no spaces.
    """
    meant = _meant(tree, folder)
    meant.pop("study", None)
    canonical = json.dumps(meant, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _meant(tree: Mapping, folder: Path = kept.STUDIES) -> dict:
    """Parameters with what they mean where they say nothing, and nothing of what came since the base."""
    base = folder / f"{FIRST_BASE}.yaml"
    filled = params.parsed(base) if base.exists() else {}
    kept.merge(filled, copy.deepcopy(MEANT))
    return kept.merge(filled, _without_newer_defaults(tree, filled))


def _without_newer_defaults(tree: Mapping, base: Mapping) -> dict:
    """A copy of parameters without settings at their default that have come since the base."""
    tree = copy.deepcopy(dict(tree))
    embed = {name: (None, default) for name, default in EMBED.items()}
    newer = (
        (tree.get("embed", {}), base.get("embed", {}), embed),
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


# ---------------------------------------------------------------------------- the table


def read(path: Path = TABLE) -> list[Row]:
    """The rows of the table; none where there is no table."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def of_study(name: str, rows: list[Row]) -> list[Row]:
    """The rows of one study; the last one is that of today's content."""
    return [row for row in rows if row.study == name]


def fixed(tree: Mapping) -> Row | None:
    """Since when the content of these parameters stands as that of their kept study.

    By the table or, where it has no row of this content, by the history. None where the content was
    never committed as that of the study.
    """
    name = tree["study"]
    digest = content_digest(tree)
    for row in of_study(name, read()):
        if row.digest == digest and row.state != WITHDRAWN:
            return row
    return first_stood(name, digest)


def confirmed(name: str, path: Path = TABLE) -> Row | None:
    """The row under which a study was confirmatory; None if it never was."""
    found = [row for row in of_study(name, read(path)) if row.state == CONFIRMATORY]
    return found[0] if found else None


def first_stood(name: str, digest: str, *, still: bool = True) -> Row | None:
    """The first commit in which a study's file, also under earlier names, had this content.

    None where it does not have it in the last commit (unless ``still`` is False: where it never had it),
    or where the history is cut off.
    """
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        return None
    found = None
    for commit, date, path in _history(kept.STUDIES / f"{name}.yaml"):
        tree = _resolved_at(commit, path)
        if tree is not None and content_digest(tree) == digest:
            found = Row(name, _state(tree), digest, commit, date)
        elif still and not found:
            break
    return found


def _state(tree: Mapping) -> str:
    return tree["protocol"]["status"]


def update() -> list[str]:
    """Write the table; the lines to print say what changed, and which study cannot be entered yet."""
    known = read()
    rows = [row for row in known if row.state == WITHDRAWN]
    lines = []
    for name in kept.names():
        mine = [row for row in of_study(name, known) if row.state != WITHDRAWN]
        found, line = _entered(name, mine)
        rows += found
        lines += line
    lines += [f"{name}: gone" for name in _gone(known, rows)]
    _write(rows)
    return lines or [f"{TABLE} is up to date"]


def _entered(name: str, mine: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows of a study with that of its content today, and the line to print, if any."""
    tree = kept.resolve(name)
    digest = content_digest(tree)
    if mine and mine[-1].digest == digest:
        return mine, []
    _check_change(name, mine, _state(tree))
    row = first_stood(name, digest)
    if row is None:
        return mine, [
            f"{name}: not committed as it stands, or the history is shallow; "
            "commit it, or fetch the history, and run this again"
        ]
    line = f"{name}: since {row.commit[:7]} of {row.date[:10]}"
    if row.state != RERUN:
        return [row], [line]
    before = [old for old in mine if old.state == CONFIRMATORY]
    row = row._replace(note=_differences(_content(before[0]), tree))
    return [*before, row], [f"{line}, a rerun: {row.note}"]


def _check_change(name: str, mine: list[Row], state: str) -> None:
    """Refuse a new content that would pass for what it is not."""
    file = f"{kept.STUDIES}/{name}.yaml"
    states = {row.state for row in mine}
    if state == RERUN:
        if CONFIRMATORY not in states or not _was_run(name):
            raise ValueError(
                f"{file}: protocol.status is rerun, but no confirmatory study {name} was run; write "
                "confirmatory or exploratory"
            )
    elif CONFIRMATORY in states and _was_run(name):
        raise ValueError(
            f"{file} is not what was committed in {mine[0].commit[:7]}, but the protocol of a study "
            "that was run does not change; give the new one another name, or write protocol.status: rerun"
        )
    elif states == {EXPLORATORY} and state == CONFIRMATORY and _was_run(name):
        raise ValueError(
            f"{file}: protocol.status is confirmatory, but the study was run as exploratory, and its "
            "results are known; give the new one another name"
        )


def _gone(known: list[Row], rows: list[Row]) -> list[str]:
    """Studies of the old table that are in no row; a confirmatory content does not go by itself."""
    gone = {row.study for row in known} - {row.study for row in rows}
    standing = {row.digest for row in rows}
    for row in known:
        if row.study in gone and row.state == CONFIRMATORY and row.digest not in standing:
            raise ValueError(
                f"{kept.STUDIES}/{row.study}.yaml is gone, but its protocol was confirmatory; put it back, "
                f"or say why: `python -m study protocols withdraw {row.study} WHY`"
            )
    return sorted(gone)


def withdraw(name: str, why: str) -> str:
    """Give up a confirmatory protocol that was not run: its file goes, its row says why.

    Returns
    -------
    str
        The line to print.

    Raises
    ------
    ValueError
        If the study has no confirmatory row, or was run.
    """
    rows = read()
    mine = of_study(name, rows)
    if not mine or mine[-1].state != CONFIRMATORY:
        raise ValueError(f"{TABLE} has no confirmatory study {name!r} to withdraw")
    if _was_run(name):
        raise ValueError(f"{name} was run, and its report is in reports/{name}; it stays")
    if "\n" in why or not why.strip():
        raise ValueError("why a protocol is withdrawn takes one line that says something")
    at = rows.index(mine[-1])
    rows[at] = mine[-1]._replace(state=WITHDRAWN, note=why.strip())
    kept.STUDIES.joinpath(f"{name}.yaml").unlink(missing_ok=True)
    _write(rows)
    return f"{name}: withdrawn"


def _write(rows: list[Row]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(
        sorted(rows, key=lambda row: row.study)
    )  # stable: rows of a study keep their order
    write_text(TABLE, stream.getvalue())


def _was_run(name: str) -> bool:
    """Whether a report of a study of this name is here."""
    return Path("reports", name, "provenance.json").exists()


# ---------------------------------------------------------------------------- the history


def _content(row: Row) -> Mapping:
    """The parameters that a row is of, from the history."""
    for commit, _, path in _history(kept.STUDIES / f"{row.study}.yaml"):
        tree = _resolved_at(commit, path)
        if tree is not None and content_digest(tree) == row.digest:
            return tree
    raise ValueError(f"the history lacks the content of {row.study}; fetch it, and run this again")


def _differences(before: Mapping, after: Mapping) -> str:
    """The settings that differ, as in ``train.l2: 0.1, now auto``, but for :data:`UNTOLD`."""
    old, new = (_leaves(params.filled(_meant(tree))) for tree in (before, after))
    keys = [key for key in (old | new) if old.get(key) != new.get(key)]
    keys = [key for key in keys if key.partition(".")[0] not in UNTOLD]
    return "; ".join(f"{key}: {_said(old, key)}, now {_said(new, key)}" for key in keys)


def _leaves(tree: Mapping, within: str = "") -> dict:
    """All single values and lists of a tree, by their place in it."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, f"{within}{key}.")
        else:
            found[f"{within}{key}"] = value
    return found


def _said(values: Mapping, key: str) -> str:
    return json.dumps(values[key]).replace('"', "") if key in values else "none"


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
        return params.parsed_text(text.encode())
    except (YAMLError, RecursionError):
        return None


def main(arguments: list[str]) -> None:
    options = parser("protocols")
    commands = options.add_subparsers(dest="command")
    withdrawing = commands.add_parser("withdraw")
    withdrawing.add_argument("name", help="of a confirmatory study that was not run")
    withdrawing.add_argument("why", help="in one line")
    args = options.parse_args(arguments)
    if args.command == "withdraw":
        print(withdraw(args.name, args.why))
    else:
        print("\n".join(update()))
