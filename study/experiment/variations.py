"""A study in one call, and what varies it: one setting at a time, another proxy, the method's parts.

The pipeline runs the main study as stages; another task, another kind of bias, an ablation or another
proxy goes through here, always with linear heads.

``settings`` are the keys of params.yaml that a function's work depends on: ``seeds``, ``methods``, and
the sections ``bias``, ``weights`` and ``train``. ``folder`` is where finished work is kept: a later call
takes from it whatever it would compute in the same way; None keeps nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cid.device import pick_device
from cid.heads import StandardisedFeatures
from cid.names import find
from cid.posterior import label_posterior, without_class_direction
from study.cores import on_all_cores
from study.experiment.design import draw_sets
from study.experiment.methods import Sample, kernel_width, proxy_density, surprise
from study.experiment.runs import (
    blocks,
    head_options,
    known_code,
    tested,
    train_sets,
    weigh_sets,
    whole,
)
from study.faces.embed import pair_similarities, verification_auc
from study.store import digest, keep, kept, read

FEW = 0.002  # share of the training images under which a cell size is left out of the factors
LABEL, PERSON = "same-label AUC within a person", "verification AUC"  # what a proxy tells


@dataclass(frozen=True)
class Arrays:
    """A data set as the methods see it.

    ``proxy`` (n, d) and ``features`` (n, t) float32; ``labels`` (n,), 0 or 1, or NaN for an image
    without one; ``identities`` (n,), which build the biased sets, the oracles and nothing else.
    """

    proxy: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    identities: np.ndarray

    def design(self) -> StandardisedFeatures:
        """The features and labels made ready for many calls of :func:`run`."""
        return StandardisedFeatures(self.features, whole(self.labels))


def drawn(arrays: Arrays, settings: dict, levels: Iterable[float] | None = None) -> pd.DataFrame:
    """The sets of a study, of ``bias.levels`` or others: :func:`study.experiment.design.draw_sets`."""
    bias = settings["bias"] | {"only": levels}
    return draw_sets(arrays.identities, arrays.labels, seeds=settings["seeds"], **bias)


def weighed(arrays: Arrays, sets: pd.DataFrame, settings: dict, folder=None) -> pd.DataFrame:
    """The sets weighed by every method: :func:`study.experiment.runs.weigh_sets`."""
    data = arrays.proxy, arrays.labels, arrays.identities
    return weigh_sets(sets, *data, settings["methods"], settings["weights"], folder)


def run(
    arrays: Arrays, settings: dict, levels: Iterable[float] | None = None, design=None, folder=None
) -> pd.DataFrame:
    """Predictions of linear heads on every set: as :func:`study.experiment.runs.train_sets`.

    Parameters
    ----------
    levels : iterable of float, optional
        Instead of ``bias.levels``.
    design : StandardisedFeatures, optional
        Of the features and labels, for calls that have training sets in common. One of all rows, as the
        variations here use, standardises by all rows and then by the training set's own: the same but
        for rounding.
    """
    return _run(arrays, drawn(arrays, settings, levels), settings, design, folder)


def _run(arrays, sets, settings, design, folder) -> pd.DataFrame:
    """As :func:`run`. Scores are kept by block of sets, whose weights need then not even be read."""
    if folder is None:
        return _computed(arrays, sets, settings, design, folder)
    people, methods = np.unique(arrays.identities, return_inverse=True)[1], settings["methods"]
    given = arrays.proxy, arrays.features, arrays.labels, people, design is None
    given += methods, settings["weights"], settings["train"], pick_device("auto").type
    shared, parts = digest(*given, known_code(f"{__name__}._computed")), blocks(sets)
    files = [Path(folder) / f"scores-{digest(shared, *_columns(part))[:24]}.npz" for part in parts]
    found = [read(file) for file in files]
    tables = [tested(part) for part in parts]
    missing = [place for place, scores in enumerate(found) if scores is None]
    if missing:
        some = pd.concat([parts[place] for place in missing])
        scores, first = _computed(arrays, some, settings, design, folder)[methods], 0
        for place in missing:
            own = scores[first : first + len(tables[place])]
            found[place] = {method: own[method].to_numpy() for method in methods}
            keep(files[place], found[place])
            first += len(own)
    scored = [t.assign(**scores) for t, scores in zip(tables, found, strict=True)]
    return pd.concat(scored, ignore_index=True)


def _columns(sets: pd.DataFrame) -> list[np.ndarray]:
    """What decides the scores of some sets."""
    columns = [sets[name].to_numpy() for name in ("level", "seed", "row")]
    return [*columns, (sets["part"] == "train").to_numpy()]


def _computed(arrays, sets, settings, design, folder) -> pd.DataFrame:
    return _trained(arrays, weighed(arrays, sets, settings, folder), settings, design, folder)


def _trained(arrays, sets, settings, design=None, folder=None) -> pd.DataFrame:
    train = settings["train"]
    data = arrays.features, arrays.labels, settings["methods"], train["l2"], head_options(train)
    return train_sets(sets, *data, design=design, folder=folder)[0]


def vary(
    arrays: Arrays, settings: dict, setting: str, values: Sequence, level: float, **how
) -> pd.DataFrame:
    """Predictions at one bias level under several values of one setting, such as ``weights.tau``.

    As from :func:`run`, with the value as text ("all" for None), ``value``, in the place of ``level``.
    ``how`` are the ``design`` and the ``folder`` of :func:`run`. Errors as of :func:`changed`.
    """
    changes = {
        "all" if value is None else str(value): (arrays, changed(settings, setting, value))
        for value in values
    }
    return _vary(changes, level, **how)


def vary_proxy(
    arrays: Arrays, settings: dict, proxies: dict[str, np.ndarray], level: float, **how
) -> pd.DataFrame:
    """As :func:`vary`, for proxy embeddings ``{name: (n, d) array}`` in the place of values."""
    changes = {name: (replace(arrays, proxy=proxy), settings) for name, proxy in proxies.items()}
    return _vary(changes, level, label="proxies", **how)


def _vary(changes: dict[str, tuple], level, design=None, folder=None, label=None) -> pd.DataFrame:
    first, _ = next(iter(changes.values()))
    design = design or first.design()
    # Few settings have a say in how sets are drawn, and a proxy has none.
    ways = {value: digest(own["bias"], own["seeds"]) for value, (_, own) in changes.items()}
    sets = {}
    for value, way in ways.items():
        if way not in sets:
            sets[way] = drawn(*changes[value], [level])

    def one(value: str) -> pd.DataFrame:
        arrays, settings = changes[value]
        table = _run(arrays, sets[ways[value]], settings, design, folder)
        return table.rename(columns={"level": "value"}).assign(value=value)

    return pd.concat(on_all_cores(one, changes, label=label), ignore_index=True)


def changed(settings: dict, key: str, value) -> dict:
    """A copy of the settings with the dotted key (``weights.tau``, ``train.robust.alpha``) set.

    A ValueError on an unknown key names the nearest known one.
    """
    find("setting", key, dict.fromkeys(_keys(settings)))
    *sections, name = key.split(".")
    new = settings = dict(settings)
    for section in sections:
        settings[section] = settings = dict(settings[section])
    settings[name] = value
    return new


def _keys(settings: dict, above: str = "") -> Iterator[str]:
    """The dotted keys of what is inside sections, however deep."""
    for name, value in settings.items():
        if above or isinstance(value, dict):
            yield above + name
        if isinstance(value, dict):
            yield from _keys(value, f"{above}{name}.")


def factors(
    arrays: Arrays, settings: dict, level: float, folder: str | Path | None = None
) -> pd.DataFrame:
    """The factors of the weights against the true size of the (person, class) cell.

    Returns
    -------
    pandas.DataFrame
        One row a cell size and factor: ``cell_size`` (training images of the same person and class),
        ``factor`` ("rarity" or "surprise, ..."), its ``mean`` and its 10 % and 90 % quantiles ``low``
        and ``high`` over the training images, the mean ``truth``, and their number ``n``. Sizes that
        fewer than :data:`FEW` of all training images have are left out: where all cells are alike but
        for rounding, a handful of images would be most of the range.
    """
    return _kept(folder, _factors, arrays, settings, level)


def _factors(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    table = factor_values(arrays, settings, level)
    size = table.groupby("cell_size")["row"].transform("size")
    groups = table[size >= FEW * len(table)].groupby("cell_size")
    rows = []
    for factor in [c for c in table if c.startswith(("rarity", "surprise"))]:
        values, truth = groups[factor], groups[f"true {factor.split(',')[0]}"].mean()
        low, high = values.quantile(0.1), values.quantile(0.9)
        columns = {"mean": values.mean(), "low": low, "high": high, "truth": truth}
        own = pd.DataFrame({"factor": factor, **columns, "n": values.size()})
        rows.append(own.reset_index())
    return pd.concat(rows, ignore_index=True)


def factor_values(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    """The factors of every training image, each of mean 1 in its set.

    Returns
    -------
    pandas.DataFrame
        ``seed``, ``row``, ``cell_size``, ``person_size`` (training images of the same person), and a
        column each for 1/p(z), for 1/p(y|z) by a kernel of CID's own width, by a kernel and by
        neighbours of the likeliest scale; and for the truth, 1/p(person) and 1/p(y|person).
    """
    tables, weights = [], settings["weights"]
    for table, sample in _samples(arrays, settings, level):
        person, cell = table["person_size"], table["cell_size"]
        same_width = label_posterior(
            sample.embeddings,
            sample.labels,
            estimator="kernel",
            slope=1.0,
            scale=kernel_width(sample, weights),
        )
        found = {
            "rarity": 1 / proxy_density(sample, weights),
            "surprise, CID's kernel": 1 / same_width.probability,
            "surprise, kernel": 1 / surprise(sample, weights, "kernel").probability,
            "surprise, k-NN": 1 / surprise(sample, weights, "knn").probability,
            "true rarity": 1 / person,
            "true surprise": person / cell,
        }
        columns = table[["seed", "row", "cell_size", "person_size"]]
        tables.append(columns.assign(**{name: v / v.mean() for name, v in found.items()}))
    return pd.concat(tables, ignore_index=True)


def posteriors(
    arrays: Arrays, settings: dict, levels: Iterable[float], folder: str | Path | None = None
) -> pd.DataFrame:
    """What the leave-one-out likelihood of the labels chooses, and how near the truth it comes.

    Returns
    -------
    pandas.DataFrame
        One row a level, seed and estimator: ``level``, ``seed``, ``estimator``, ``scale``,
        ``slope``, ``loss``, ``prior_loss``, and ``true_loss``, that of the frequencies of the labels
        among the person's other images (true identities), smoothed by Laplace's rule.
    """
    tables = [_kept(folder, _posteriors, arrays, settings, level) for level in levels]
    return pd.concat(tables, ignore_index=True)


def _posteriors(arrays: Arrays, settings: dict, level: float) -> pd.DataFrame:
    rows = []
    for table, sample in _samples(arrays, settings, level):
        # Of the person's other images, smoothed as the estimators are: one may have no other of its label.
        others, alike = table["person_size"] - 1, table["cell_size"] - 1
        prior = np.bincount(sample.labels)[sample.labels] / len(sample.labels)
        true_loss = -np.log((alike + 2 * prior) / (others + 2)).mean()
        for estimator in ("kernel", "knn"):
            found = surprise(sample, settings["weights"], estimator)
            own = {key: table[key].iloc[0] for key in ("level", "seed")} | {"estimator": estimator}
            measured = {k: getattr(found, k) for k in ("scale", "slope", "loss", "prior_loss")}
            rows.append(own | {"true_loss": true_loss} | measured)
    return pd.DataFrame(rows)


def _samples(arrays, settings, level) -> Iterator[tuple[pd.DataFrame, Sample]]:
    """Every training set as methods see it, with the true sizes of each image's person and cell."""
    sets = drawn(arrays, settings, [level])
    for _, table in sets[sets["part"] == "train"].groupby("seed"):
        rows = table["row"].to_numpy()
        person = table.groupby(arrays.identities[rows])["row"].transform("size")
        yield (
            table.assign(person_size=person).reset_index(drop=True),
            Sample(arrays.proxy[rows], whole(arrays.labels[rows]), None),
        )


def _kept(folder, work: Callable[..., pd.DataFrame], arrays, settings, level) -> pd.DataFrame:
    """The table ``work(arrays, settings, level)``, kept in a folder if there is one."""

    def compute() -> dict[str, np.ndarray]:
        # Text as numpy's own, which needs no pickle.
        table = work(arrays, settings, level)
        return {c: v.to_numpy(None if v.dtype.kind in "bif" else str) for c, v in table.items()}

    people = np.unique(arrays.identities, return_inverse=True)[1]
    given = arrays.proxy, arrays.labels, people, settings["seeds"]
    given += settings["bias"], settings["weights"], level
    key = digest(*given, known_code(f"{__name__}.{work.__name__}"))
    return pd.DataFrame(kept(folder, f"{work.__name__[1:]}-{key[:24]}", compute))


def degraded(proxy: np.ndarray, identities, noise: Sequence[float]) -> dict[str, np.ndarray]:
    """Proxies (n, d) from the true identity down to chance, made of one of unit vectors.

    ``true identity`` is a random direction for every identity; then ``as it is``; ``noise <s>`` with
    Gaussian noise of an expected length s for every s in ``noise``; and ``random``.
    """
    n, d = proxy.shape
    generator = torch.Generator().manual_seed(0)
    codes = np.unique(identities, return_inverse=True)[1]
    direction = torch.randn(codes.max() + 1, d, generator=generator).numpy()
    jitter = torch.randn(n, d, generator=generator).numpy()
    # A trace of noise, so that neighbours of one person have an order.
    found = {"true identity": direction[codes] + 1e-3 * jitter, "as it is": proxy}
    for length in noise:
        found[f"noise {length:g}"] = proxy + length * jitter / np.sqrt(d)
    return found | {"random": jitter}


def remedies(proxy: np.ndarray, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Proxies (n, d) that might leak less of the label, none of which sees a label or an identity.

    ``proxy`` are unit vectors of the photos, ``views`` from :func:`study.faces.embed.embed_views`.
    """
    crops = proxy + sum(view for name, view in views.items() if name != "mirrored")
    return {
        "as it is": proxy,
        "mirror averaged": proxy + views["mirrored"],
        "crops averaged": crops,
        "all views": crops + views["mirrored"],
        "centred": proxy - proxy.mean(axis=0),
    }


def controls(arrays: Arrays, networks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Proxies (n, d) that show whether it takes a face-recognition network to stand in for identity.

    ``networks`` are embeddings of the whole data set by name, the study's own and others', trained on
    faces or not. Around them stand ``true identity`` and ``random``, as of :func:`degraded`, and ``own
    trunk``: the arrays' features, that is what the heads are trained on, each less its mean and divided by
    its standard deviation over all images of the data set (one that is the same in all is 0), and every
    image's then scaled to unit length. No label is used.
    """
    ends = degraded(arrays.proxy, arrays.identities, [])
    spread = arrays.features.std(axis=0)
    own = (arrays.features - arrays.features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    own = (own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float32)
    between = networks | {"own trunk": own}
    return {"true identity": ends["true identity"], **between, "random": ends["random"]}


def leaks_of(arrays: Arrays, proxies: dict[str, np.ndarray], folder=None) -> pd.DataFrame:
    """:func:`leaks` of several proxies, one row each.

    Columns ``proxy`` and the two AUC, of the proxy as it is and, with ``, class direction removed`` behind
    their names, as label surprise sees it by default.
    """
    people = np.unique(arrays.identities, return_inverse=True)[1]
    about = arrays.labels, people, known_code(f"{__name__}.leaks")
    columns = [PERSON, LABEL]

    def one(name: str) -> np.ndarray:
        given = replace(arrays, proxy=proxies[name])
        key = digest(given.proxy, *about)[:24]
        found = kept(folder, f"leaks-{key}", lambda: {"auc": leaks(given)[columns].to_numpy()})
        return found["auc"].ravel()

    names = columns + [f"{column}, class direction removed" for column in columns]
    table = pd.DataFrame(on_all_cores(one, proxies), columns=names)
    table.insert(0, "proxy", list(proxies))
    return table


def leaks(arrays: Arrays) -> pd.DataFrame:
    """What the proxy tells of the label within a person, and of the person, with and without remedy.

    Columns ``proxy``, ``same-label AUC within a person``, ``verification AUC``. Labels remove the class
    direction; identities measure.
    """
    known = np.isfinite(arrays.labels)
    given, labels, people = (
        arrays.proxy[known],
        whole(arrays.labels[known]),
        arrays.identities[known],
    )
    cleaned = without_class_direction(given, labels).cpu().numpy()
    rows = []
    for name, proxy in (("as it is", given), ("class direction removed", cleaned)):
        unit = proxy / np.linalg.norm(proxy, axis=1, keepdims=True)
        label = same_label_auc(proxy, labels, people)
        rows.append((name, label, verification_auc(*pair_similarities(unit, people))))
    return pd.DataFrame(rows, columns=["proxy", LABEL, PERSON])


def withheld(arrays: Arrays, sets: pd.DataFrame, methods: list[str], settings: dict) -> dict:
    """What methods make of the first level and seed of ``sets``, given the identities and without.

    Returns
    -------
    dict
        ``{method: (with, without)}``, either a dict of the arrays ``weights`` and ``logits``.
    """
    first = (sets["level"] == sets["level"].min()) & (sets["seed"] == sets["seed"].min())
    sets = sets.loc[first, ["level", "seed", "part", "row", "minority"]]
    settings, sides = settings | {"methods": methods}, []
    for identities in (arrays.identities, None):
        found = weighed(replace(arrays, identities=identities), sets, settings)
        tables = {"weights": found, "logits": _trained(arrays, found, settings)}
        sides.append({m: {k: t[m].to_numpy() for k, t in tables.items()} for m in methods})
    return {method: tuple(side[method] for side in sides) for method in methods}


def same_label_auc(proxy: np.ndarray, labels, identities) -> float:
    """How well similarity tells same-label pairs of one person: .5 where the proxy is blind to it.

    Area under the ROC curve over all pairs of images of the same identity.
    """
    from sklearn.metrics import roc_auc_score  # which takes a second to import

    unit = proxy / np.linalg.norm(proxy, axis=1, keepdims=True)
    same, cosine = [], []
    for rows in pd.Series(np.arange(len(labels))).groupby(np.asarray(identities)).indices.values():
        first, second = np.triu_indices(len(rows), 1)
        cosine.append((unit[rows] @ unit[rows].T)[first, second])
        same.append((labels[rows][:, None] == labels[rows])[first, second])
    return float(roc_auc_score(np.concatenate(same), np.concatenate(cosine)))
