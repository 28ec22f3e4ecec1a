"""How the settings of every method were chosen: on development people, under one criterion.

    python -m study tune FOLDER        renders 100 people of seed 1 into FOLDER, embeds them, and writes
                                       studies/settings.csv; needs the package anny, takes minutes
    python -m study tune FOLDER --methods jtt lff      measures these alone, and leaves other rows be

Development people are rendered from another seed than those of any study, so nobody who was looked at
while choosing is in a result. Every method with a setting of its own gets a small grid, one setting at a
time and all else as in params.yaml. **Criterion**: gain in accuracy over ERM (of the penalty: accuracy) on
balanced held-out images of seen people, mean over the bias levels 0, .5, .8 and .9. It is measured with the
true identities of the development people. A second criterion sees none: accuracy on images distributed as
the training set, which is all that a user without identity labels could measure. The table says what
either chooses, so that a reader sees how much of a method is its selection.

Where a setting's right value depends on how many images a person has (:data:`ADAPTS`), ``auto`` is used
whatever is chosen here, as a number that fits these people would not fit others. The heads' penalty is no
longer chosen here at all, but on the training sets of each study (:mod:`cid.penalty`): its rows show what
these people would have said, and none is used. The committed rows of all other settings were measured under
the penalty .1 that these people chose, and are kept; the command now measures under `train.l2` of
params.yaml. CID's own power is 1 and
the two-factor method's rarity 1 by definition; ``cid-power`` and ``surprise`` are what the grid makes of
them. A grid holds values at which a method is itself: AFR with gamma 0, and SELF with all of the images
held out, would be the same class-balanced refit, which was a little better than either.
"""

from itertools import product
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cid.density import neighbour_width
from cid.weights import cid_weights
from study import store
from study.commands import parser, run_renamed
from study.cores import on_all_cores
from study.experiment import runs, variations
from study.experiment.arrays import Arrays
from study.faces import dataset, embed
from study.faces.tasks import task_labels
from study.methods.registry import METHODS
from study.pipeline import params

SEED, PEOPLE = 1, 100
LEVELS, SEEDS = [0.0, 0.5, 0.8, 0.9], 10
TABLE = Path("studies/settings.csv")
GRID = {  # (method, setting): values; declared where the methods are, in study/methods/
    (method.name, setting): values
    for method in METHODS.values()
    for setting, values in method.tried.items()
}
ADAPTS = ("weights.neighbours", "weights.posterior_tau", "weights.clusters")
DEFINED = ("weights.rarity",)
# Whose grids have not been run in full: their settings are defaults, which nothing was chosen by.
DEFAULTS = ("afr-crossed", "selective-crossed", "dpe")
NEAR, SHARE = (1, 3, 5, 10), (1.0, 0.5, 0.25)  # of cid.density.neighbour_width


def measured(predictions: pd.DataFrame, method: str, labels) -> dict[str, float]:
    """Accuracy of a method on seen people, mean over levels: balanced, on minority cells, as in training."""
    seen = predictions[predictions["test"] == "seen"]
    right = (seen[method] > 0) == (labels[seen["row"]] == 1)
    by_cell = right.groupby([seen["level"], seen["minority"]]).mean().unstack()
    rare = (1 - by_cell.index.to_numpy()) / 2  # share of the training images in minority cells
    as_trained = rare * by_cell[1.0] + (1 - rare) * by_cell[0.0]
    means = {"accuracy": by_cell.mean(axis=1), "minority_accuracy": by_cell[1.0]}
    return {k: float(v.mean()) for k, v in (means | {"accuracy_as_trained": as_trained}).items()}


def tuned(arrays: Arrays, settings: dict, folder=None, methods=None) -> pd.DataFrame:
    """The table: one row a method, setting and value, of some methods or all; see this module's head.

    ``settings`` are those of :mod:`study.experiment.variations`. Columns ``method``, ``setting``, ``value``,
    three gains over ERM in points (of ERM its own numbers, in percent), ``used`` (in these settings),
    ``chosen`` (by the criterion) and ``chosen_without_identities``.
    """
    labels, rows, design = arrays.labels, [], arrays.design()
    grid = {key: values for key, values in GRID.items() if not methods or key[0] in methods}
    for (method, setting), values in tqdm(grid.items(), desc="tune", unit="setting"):
        used = at(settings, setting)
        for value in values:
            own = variations.changed(settings, setting, value) | {
                "methods": list({"erm": 0, method: 0})
            }
            found = variations.run(arrays, own, design=design, folder=folder)
            row = _row(found, method, setting, value, labels)
            rows.append(row | {"used": value == used})
    widths = {} if methods and "cid" not in methods else _widths(arrays, settings, design, folder)
    for (near, share), found in widths.items():
        value = f"the {near}th, {share} of it"
        row = _row(found, "cid", "cid.density.neighbour_width", value, labels)
        rows.append(row | {"used": (near, share) == (5, 0.5)})
    table = pd.DataFrame(rows)
    groups = table.groupby(["method", "setting"], sort=False)
    for name, column in (
        ("chosen", "accuracy"),
        ("chosen_without_identities", "accuracy_as_trained"),
    ):
        table[name] = table.index.isin(groups[column].idxmax())
    return table


def at(settings: dict, setting: str):
    """What the settings hold at a path such as ``train.robust.alpha``."""
    for key in setting.split("."):
        settings = settings[key]
    return settings


def _row(predictions, method, setting, value, labels) -> dict:
    own, erm = (measured(predictions, name, labels) for name in (method, "erm"))
    gains = {k: round(100 * (v - erm[k] * (method != "erm")), 3) for k, v in own.items()}
    return {"method": method, "setting": setting, "value": str(value)} | gains


def _widths(arrays, settings, design, folder) -> dict[tuple, pd.DataFrame]:
    """CID with every width rule of the grid: predictions by (near, share)."""
    sets = variations.drawn(arrays, settings)
    rules = list(product(NEAR, SHARE))

    def weigh(train: pd.DataFrame) -> pd.DataFrame:
        data = arrays.proxy[train["row"]], arrays.labels[train["row"]]
        found = {f"{r}": cid_weights(*data, neighbour_width(data[0], *r)) for r in rules}
        return pd.DataFrame(found | {"erm": 1.0}, train.index)

    each = [train for _, train in sets[sets["part"] == "train"].groupby(["level", "seed"])]
    weights = pd.concat(on_all_cores(weigh, each)).reindex(sets.index)
    found, _ = runs.train_sets(
        pd.concat([sets, weights], axis=1),
        arrays.features,
        arrays.labels,
        list(weights),
        settings["train"],
        design=design,
        folder=folder,
    )
    return {rule: found.rename(columns={f"{rule}": "cid"}) for rule in rules}


def main(arguments: list[str]) -> None:
    options = parser("tune")
    options.add_argument("folder", type=Path, help="where the development people are or will be")
    tunable = sorted({method for method, _ in GRID})
    options.add_argument("--methods", nargs="+", choices=tunable, help="measure these alone")
    given = options.parse_args(arguments)
    folder = given.folder
    tree = params.read()
    if not (folder / dataset.CARD).exists():
        from people.records import card, records

        dataset.write_faces(folder, records(PEOPLE, seed=SEED), card(PEOPLE, seed=SEED))
    faces = dataset.read_faces(folder)
    networks = tree["embed"]["network"], tree["embed"]["trunk"]
    how = {key: tree["embed"].get(key) for key in ("detect", "detector", "mirror", "onnx")}
    found = embed.embed_faces(faces, *networks, **how)
    labels, identities = task_labels(faces, tree["task"]), faces.frame["identity"].to_numpy()
    arrays = Arrays(found.embedding, found.trunk, labels, identities)
    settings = {key: tree[key] for key in ("bias", "weights", "train")} | {"seeds": SEEDS}
    settings["bias"] = settings["bias"] | {"levels": LEVELS}
    table = tuned(arrays, settings, store.KEPT, given.methods)
    if given.methods:
        known = pd.read_csv(TABLE, dtype={"value": str})
        table = pd.concat([known[~known["method"].isin(given.methods)], table], ignore_index=True)
    store.write_text(TABLE, table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    run_renamed(__spec__.name)
