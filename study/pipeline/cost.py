"""What a study will cost, and what it could show, before it starts.

python -m study.pipeline.cost     what `dvc repro` would run, about how long it takes, and the smallest
                                  effect it would detect, by the committed study that is most like it
"""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from study.experiment.design import usable_identities
from study.faces import dataset
from study.methods.registry import JUDGED
from study.pipeline import params, stages
from study.pipeline.notebook import TIMES, seconds
from study.results import inference
from study.results.claims import PRIMARY
from study.results.metrics import METRICS

PROFILE = Path("benchmarks/profile.csv")  # seconds of every stage as committed, on two cores


def cost() -> str:
    """What ``dvc repro`` would run now, and how long it takes by the last runs here or the committed
    one, if whatever is upstream changes everything downstream."""
    # `dvc repro --dry` stops at the first file that an earlier stage has yet to make.
    done = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr + done.stdout).splitlines()
        problem = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise ValueError(f"DVC cannot say what is out of date: {(problem or said or ['?'])[0]}")
    wanted = outdated(json.loads(done.stdout))
    if not wanted:
        return "Nothing to run: everything is up to date."
    here, committed = seconds(TIMES), seconds(PROFILE)
    total = sum(here.get(stage) or committed.get(stage, 15) for stage in wanted)
    lines = [f"{len(wanted)} stages would run: {', '.join(wanted)}."]
    card = Path("data/card.json")
    if "embed" in wanted and card.exists():
        counts = json.loads(card.read_text(encoding="utf-8")).get("counts")
        lines += [f"{counts['images']:,} faces would be embedded."] if counts else []
    known = all(stage in here for stage in wanted)
    source = "of the last runs here" if known else "partly of the committed run, on 2 cores"
    lines.append(f"About {max(1, round(total / 60))} minutes, by the times {source}.")
    return "\n".join(lines)


def outdated(status: dict) -> list[str]:
    """Stages that would run, by what ``dvc status`` says of each, in the order of dvc.yaml.

    What is deleted and in DVC's cache is fetched from there; a dependency that is deleted is its own
    stage's affair.
    """
    wanted, made = [], set()
    for name, stage in stages.stages().items():
        files = [state for part in status.get(name, []) for state in _files(part)]
        if any(state != "deleted" for state in files) or made & set(stage.get("deps", [])):
            wanted.append(name)
            made |= {out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]}
    return wanted


def _files(part: str | dict) -> list:
    """What ``dvc status`` says of the files of a stage; of a command that changed, that it did."""
    return [part] if isinstance(part, str) else [s for kind in part.values() for s in kind.values()]


def people(own: dict) -> int:
    """How many people of the data set in ``data/`` would take part in a study."""
    bias, faces = own["bias"], dataset.read_faces("data", check_images=False, name=own["data"])
    how = [bias[key] for key in ("images_per_identity", "test_per_class", "kind", "levels")]
    table = usable_identities(faces.frame["identity"], faces.labels(own["task"]), *how)
    usable = int(table["usable"].sum())
    taken = usable if bias["people"] is None else min(usable, bias["people"])
    return taken * (own["seeds"] if bias["cohorts"] else 1)


def power(own: dict, number: int, reports: Path = Path("reports")) -> str:
    """The smallest effects that a study of so many people would detect, by a committed study.

    The pilot is the one that has most in common with it: kind of bias, model, data, task, people.
    """
    pilots = []
    for file in sorted(reports.glob("[!.]*/power.csv")):
        other = YAML(typ="safe").load(file.parent / "params.yaml")
        alike = [
            other["bias"]["kind"] == own["bias"]["kind"],
            other["train"]["model"] == own["train"]["model"],
            other["data"] == own["data"],
            other["task"] == own["task"],
        ]
        table = pd.read_csv(file)
        apart = abs(int(table["people"].max()) - number)
        pilots.append((*[not same for same in alike], apart, file.parent.name, table))
    if not pilots:
        return "No study is committed, so nothing is known of its power."
    *_, name, table = min(pilots, key=lambda pilot: pilot[:-1])
    rows = table[(table["test"] == "seen") & table["pair_sd"].notna()].set_index(
        ["metric", "method"]
    )
    method = next((m for m in JUDGED if m in rows.index.get_level_values("method")), None)
    pairs = number if own["bias"]["cohorts"] else None  # a person of a cohort meets one seed only
    said = [
        f"{METRICS[metric].title.lower()} "
        f"{100 * inference.detectable(rows.loc[metric, method], own['seeds'], number, pairs):.2f}"
        for metric in PRIMARY
        if (metric, method) in rows.index
    ]
    return (
        f"With {own['seeds']} seeds and {number} people it would detect, with probability .8 and by what "
        f"{method} varied in {name}, in points: {', '.join(said)}."
    )


@params.command
def main(argv: list[str] | None) -> None:
    own = params.read()
    params.check_repository()
    print(cost())
    print(power(own, people(own)))


if __name__ == "__main__":
    sys.exit(main())
