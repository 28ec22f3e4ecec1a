"""What a study will take, and what it could show, before it starts.

    python -m study cost                                       of params.yaml
    python -m study cost --study celeba-smiling-8 [--pilot lfw-smiling-8]    of a kept study: power only
    python -m study cost --study celeba-smiling-8 --level 0.05    before any correction, as older protocols say

What `dvc repro` would run, about how long that takes, and the smallest effect it would detect, by what
varied in a committed study: the one that is most like it, or the one that is named. A study that the stage
`data` would refuse is refused here, with the same words.
"""

import json
import math
import subprocess
from argparse import ArgumentTypeError
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from cid.names import find
from study.commands import parser, run_renamed
from study.errors import check_repository
from study.experiment.design import check_draws, draw_sets
from study.faces import dataset
from study.faces.tasks import task_labels
from study.methods.registry import JUDGED
from study.pipeline import kept, params, stages
from study.pipeline.notebook import TIMES, read_times, stage_parameters
from study.results import inference
from study.results.claims import ENDPOINTS, PRIMARY
from study.results.inference import ALPHA
from study.results.metrics import METRICS

PROFILE = Path(
    "benchmarks/profile.csv"
)  # seconds of every stage of the committed study, on two cores
UNKNOWN_POWER = (
    "No power is known before the audit, which says what it would find: no image says who it shows."
)
UNKNOWN = 15  # seconds of a stage that was never timed


# ---- time --------------------------------------------------------------------------------------


def cost() -> str:
    """What ``dvc repro`` would run now, and about how long it would take.

    Times are those of the last runs here, or else of the committed study. A stage counts as run if one
    that it depends on runs, because that may change its inputs.
    """
    wanted = outdated(dvc_status())
    if not wanted:
        return "Nothing to run: everything is up to date."
    here = read_times(TIMES)
    committed = read_times(PROFILE)
    seconds = sum(here.get(stage) or committed.get(stage, UNKNOWN) for stage in wanted)
    if all(stage in here for stage in wanted):
        origin = "of the last runs here"
    else:
        origin = "partly of the committed run, on 2 cores"

    lines = [f"{len(wanted)} stages would run: {', '.join(wanted)}."]
    images = count_images()
    if "embed" in wanted and images is not None:
        lines.append(f"{images:,} faces would be embedded.")
    lines.append(f"About {max(1, round(seconds / 60))} minutes, by the times {origin}.")
    return "\n".join(lines)


def dvc_status() -> dict:
    """What ``dvc status`` says, by stage.

    (``dvc repro --dry`` stops at the first file that an earlier stage has yet to make.)
    """
    done = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr + done.stdout).splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        problem = (errors or lines or ["?"])[0]
        raise ValueError(f"DVC cannot say what is out of date: {problem}")
    return json.loads(done.stdout)


def count_images() -> int | None:
    """How many images the data set in ``data/`` holds, if its card says so."""
    card = Path("data/card.json")
    if not card.exists():
        return None
    counts = json.loads(card.read_text(encoding="utf-8")).get("counts")
    return counts["images"] if counts else None


def outdated(status: Mapping) -> list[str]:
    """Stages that would run, in the order of dvc.yaml, given what ``dvc status`` says of each.

    An output that is deleted but in DVC's cache is fetched from there, so it runs nothing. A dependency
    that is deleted is the business of the stage that makes it.
    """
    wanted = []
    made: set[str] = set()
    for name, stage in stages.read_stages().items():
        states = [state for part in status.get(name, []) for state in _states(part)]
        changed = any(state != "deleted" for state in states)
        if changed or made & set(stage.get("deps", [])):
            wanted.append(name)
            made.update(out if isinstance(out, str) else next(iter(out)) for out in stage["outs"])
    return wanted


def _states(part: str | Mapping) -> list:
    """The states in a part of ``dvc status``: of files, or a text such as "changed command"."""
    if isinstance(part, str):
        return [part]
    return [state for files in part.values() for state in files.values()]


# ---- power -------------------------------------------------------------------------------------


def count_tested(study: Mapping) -> dict[str, tuple[int, int]]:
    """How many people a study would test, seen in training and unseen, and in how many pairs with a seed.

    By test; nothing where nobody is known. The sets of the data set in ``data/`` are drawn as the study draws them: ``ValueError`` if it
    could not, or if another of its stages could not. All levels share their test images, so one is enough.
    """
    faces = dataset.read_faces("data", check_images=False, name=study["data"])
    check_draws(faces, stage_parameters("data", study))
    identities = faces.identities()
    sets = draw_sets(
        identities,
        task_labels(faces, study["task"]),
        seeds=study["seeds"],
        only=study["bias"]["levels"][:1],
        **study["bias"],
    )
    tested = sets[sets["part"].isin(["seen", "unseen"])]
    tested = tested.assign(person=identities[tested["row"]])
    pairs = tested[["part", "seed", "person"]].drop_duplicates()
    return {part: (own["person"].nunique(), len(own)) for part, own in pairs.groupby("part")}


def strictest_level(tested: Mapping) -> float:
    """The level at which Holm's correction tests the smallest p value of a method's primary endpoints.

    These are, by the rules of :mod:`study.results.claims`, all :data:`~study.results.claims.ENDPOINTS` of
    seen people, and the accuracy of unseen people where there are any. No endpoint is judged at a stricter
    level, so what is detected at this one is detected whatever the p values will be.
    """
    unseen = 1 if "unseen" in tested else 0
    return ALPHA / (len(ENDPOINTS) + unseen)


def power(
    study: Mapping,
    tested: Mapping[str, tuple[int, int]],
    pilot: str | None = None,
    reports: Path = Path("reports"),
    level: float | None = None,
) -> str:
    """The smallest effects that a study would detect; ``tested`` is from :func:`count_tested`.

    How much a method varies is taken from the committed study called ``pilot``, or from the one that has
    most in common with it (:func:`_distance`). The level of the tests is ``level``, or else that of
    :func:`strictest_level`.

    Raises
    ------
    ValueError
        If there is no such pilot.
    """
    if not tested:
        return UNKNOWN_POWER
    people, _ = tested["seen"]
    pilots = {}
    for file in sorted(reports.glob("[!.]*/power.csv")):
        table = pd.read_csv(file)
        table = table[table["pair_sd"].notna()]
        if any(method in set(table["method"]) for method in JUDGED):
            pilots[file.parent.name] = (_distance(study, people, file.parent, table), table)
    if not pilots:
        return "No study is committed, so nothing is known of its power."
    if pilot is None:
        pilot = min(pilots, key=lambda name: (pilots[name][0], name))
    _, table = find("pilot", pilot, pilots)

    if level is None:
        level = strictest_level(tested)
        at = f"at the level of {100 * level:g} % that Holm's correction leaves at the least"
    else:
        at = f"at the level of {100 * level:g} %"
    known = table.set_index(["test", "metric", "method"])
    measured = known.index.get_level_values("method")
    method = next(name for name in JUDGED if name in measured)
    parts = []
    for test, (people_of_test, pairs) in tested.items():
        for metric in PRIMARY:
            if (test, metric, method) in known.index:
                row = known.loc[test, metric, method]
                effect = inference.detectable(row, study["seeds"], people_of_test, pairs, level)
                points = (
                    f"{100 * effect:.2f}" if math.isfinite(effect) else "not known (one person)"
                )
                parts.append(f"{METRICS[metric].title.lower()} of {test} people {points}")
    return (
        f"With {study['seeds']} seeds and {people} people it would detect, with probability .8, {at}, and "
        f"by what {method} varied in {pilot}, in points: {', '.join(parts)}."
    )


def _distance(study: Mapping, people: int, report: Path, table: pd.DataFrame) -> tuple:
    """How far a committed study is from another one: what differs, most important first.

    That is the kind of bias, the model, the data, the task, then the numbers that decide how much a gain
    varies: levels of bias (an endpoint is a mean over them), images and test images of a person, and last
    the number of people.
    """
    other = YAML(typ="safe").load(report / "params.yaml")
    bias = study["bias"]
    return (
        other["bias"]["kind"] != bias["kind"],
        other["train"]["model"] != study["train"]["model"],
        other["data"] != study["data"],
        other["task"] != study["task"],
        other["bias"]["levels"] != bias["levels"],
        other["bias"]["images_per_identity"] != bias["images_per_identity"],
        other["bias"]["test_per_class"] != bias["test_per_class"],
        abs(int(table["people"].max()) - people),
    )


def _level(text: str) -> float:
    """A level of significance of the command line."""
    with suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise ArgumentTypeError(
        f"{text} is no level; it must be a number between 0 and 1, such as 0.05"
    )


def main(arguments: list[str]) -> None:
    options = parser("cost")
    options.add_argument("--study", help="name of a file in studies/: its power only")
    options.add_argument("--pilot", help="name of a committed report, whose noise is taken")
    options.add_argument("--level", type=_level, help="of the tests, in place of Holm's strictest")
    args = options.parse_args(arguments)
    if args.study:
        study = params.filled(kept.resolve(args.study))
        said = []
    else:
        study = params.read()
        check_repository()
        said = [cost()]
    # Everything before anything is printed: no minutes of a study that would be refused.
    said.append(power(study, count_tested(study), args.pilot, level=args.level))
    print("\n".join(said))


if __name__ == "__main__":
    run_renamed(__spec__.name)
