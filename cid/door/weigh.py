"""``python -m cid weigh``: a weight for every image, and whether weights can do anything here.

Weights are label surprise times trust in the label, where features of the task are at hand: what is wrong
is as surprising as what is rare (:mod:`cid.trust`).
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from cid.door import doubted, tables
from cid.door.faces import say
from cid.door.inputs import UNNAMED, embedded, keep_read, labelled, opened, tell_left_out

METHODS = ("surprise", "cid", "two-factor")
RESERVED = (tables.IMAGE, "surprise", "trust", "weight", "reason", *doubted.RESERVED)  # columns
SURE = 3.0  # standard errors that the gain over chance must have
ROUNDING = 1e-9  # nats; where the likeliest slope is 0, gain and error are nothing else
FEW = 5  # images of a class; fewer share a weight that is meant for many
SLOW = 20_000  # from so many images on the time is estimated beforehand


@dataclass(frozen=True)
class Weighed:
    """Weights of n images, and what neighbours know of the label."""

    weights: np.ndarray  # float64 (n,), of mean 1
    surprise: np.ndarray  # float64 (n,): 1 / p(own label) among the images most like it
    gain: float  # of log p(own label), in nats an image, over class frequencies alone
    error: float  # standard error of the gain
    right: float  # mean probability of the own label
    chance: float  # the same by class frequencies alone
    recall: float = 1.0  # share of the nearest neighbours that were found, among images looked at
    off: float = 0.0  # how far 95 of 100 values of 1 / p(own label) are from the exact ones at most

    @property
    def better_than_chance(self) -> bool:
        return self.gain > SURE * self.error + ROUNDING


def run(options: Namespace) -> int:
    """Weigh the images that the options name; write the table, say what it is worth; return 0."""
    output = check_output(Path(options.output), (".csv", ".parquet", ".pq", ".npy"))
    if output.name == doubted.NAME:
        raise ValueError(f"{output} is where doubted labels are listed; name another file")
    list_of_doubts = output.parent / doubted.NAME
    keep_read(options, output, list_of_doubts)
    found = opened(options)
    label = options.label or only_column(found.rows.table, (), found.rows.where)
    if label in RESERVED:
        raise ValueError(
            f"--label {label}: the output has a column of its own with this name; rename the column"
        )
    labelled(found.rows, label)  # what is wrong with labels is said before photographs are opened
    got = embedded(found, options, output, [label])
    texts, known, reasons = labelled(got.rows, label, got.reasons)
    usable = np.array([not reason for reason in reasons])
    labels = texts[usable].astype(str)
    for line in tables.doubts(labels, known, label):
        say(f"warning: {line}")
    _check_sizes(labels, known, label)
    found = None
    if options.trust == "yes":
        found = doubted.judged(got, usable, labels, options.device)
    trust = np.full(len(labels), np.nan) if found is None else found.probability
    n = int(usable.sum())
    if many(n, options.device, options.exact):
        say(f"comparing {n:,} images with those in likely places (--exact compares all)")
    else:
        say_time(n, got.embedding.shape[1])
    result = weigh(
        got.embedding[usable],
        labels,
        options.method,
        options.class_prior,
        options.device,
        trust=None if found is None else trust,
        exact=options.exact,
    )
    of_rows = np.full((3, len(usable)), np.nan)
    of_rows[:, usable] = result.surprise, trust, result.weights
    _write(output, got.rows.names, label, texts, of_rows, reasons)
    tell_left_out(reasons)
    _tell(result, known, labels)
    if found is not None:
        doubts = doubted.table(found, got, usable, labels, label)
        tables.write_table(list_of_doubts, doubts)
        for line in doubted.told(found, labels, len(doubts)):
            print(line)
    elif list_of_doubts.exists():
        say(f"note: {list_of_doubts} is of an earlier call")
    print(f"written: {output}, {usable.sum():,} weights of mean 1")
    return 0


def _write(output: Path, names, label: str, texts, of_rows: np.ndarray, reasons) -> None:
    """Write surprise, trust and weight (3, n) of all rows, or, as ``.npy``, the weights alone."""
    surprise, trust, weights = of_rows
    if output.suffix == ".npy":
        tables.write(output, lambda file: np.save(file, weights))
        return
    columns = {tables.IMAGE: names, label: texts}
    columns |= {"surprise": surprise, "trust": trust, "weight": weights, "reason": reasons}
    tables.write_table(output, pd.DataFrame(columns))


def weigh(
    embeddings,
    labels,
    method: str,
    class_prior: str,
    device: str = "auto",
    trust=None,
    exact: bool = False,
) -> Weighed:
    """Compute the weights of :mod:`cid.weights`, and compare neighbours with chance.

    Parameters
    ----------
    embeddings : array (n, d)
    labels : array (n,)
    method : str
        One of :data:`METHODS`.
    class_prior, device
        As in :func:`cid.weights.cid_weights`.
    trust : array (n,), optional
        P(label right), which the weights are multiplied by; a class keeps its total.
    exact : bool
        Compare all images with each other, however many there are. Otherwise, of more than
        :data:`cid.large.MANY` images on a processor, likely cells are searched, as in :mod:`cid.large`.
    """
    from cid.weights import inverse_weights, log_product

    if many(len(labels), device, exact):
        posterior, density, check = _by_cells(embeddings, labels, method)
    else:
        posterior, density, check = _among_all(embeddings, labels, method, device)
    if method == "cid":
        weights = inverse_weights(density, labels, class_prior=class_prior)
    else:  # as `surprise_weights` and `two_factor_weights`, from the posterior that is told of, too
        logs = log_product(posterior.probability, density, surprise="auto")
        weights = inverse_weights(logs, labels, class_prior=class_prior, log=True)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = np.asarray(weights, dtype=np.float64)
    if trust is not None:
        totals = np.bincount(codes, weights)
        weights = weights * trust
        weights *= (totals / np.bincount(codes, weights))[codes]
    frequencies = (counts / len(labels))[codes]
    gains = np.log(posterior.probability) - np.log(frequencies)
    return Weighed(
        weights=weights,
        surprise=1 / np.asarray(posterior.probability, dtype=np.float64),
        gain=float(gains.mean()),
        error=float(gains.std() / len(gains) ** 0.5),
        right=float(posterior.probability.mean()),
        chance=float(frequencies.mean()),
        recall=check.recall,
        off=check.most,
    )


def many(n: int, device: str, exact: bool) -> bool:
    """Whether there are too many images to compare all of them with each other, unless that is asked for."""
    from cid.arrays import pick_device
    from cid.large import MANY

    return n > MANY and not exact and pick_device(device).type == "cpu"


def _among_all(embeddings, labels, method: str, device: str):
    """The posterior, the density that a method needs, and how good they are: all images are compared."""
    from cid.factors import Factors
    from cid.large import EXACT_CHECK

    factors = Factors(embeddings, labels, device=device)
    posterior = factors.posterior()
    density = None if method == "surprise" else factors.density(in_class=method == "cid")
    return posterior, density, EXACT_CHECK


def _by_cells(embeddings, labels, method: str):
    """The same from likely cells."""
    from cid.arrays import as_tensor
    from cid.cells import cell_density, width_in_parts
    from cid.large import EXACT, label_posterior
    from cid.posterior import without_class_direction

    cleaned = without_class_direction(embeddings, labels, device="cpu")
    posterior, check = label_posterior(cleaned, labels, device="cpu", return_check=True)
    if method == "surprise":
        return posterior, None, check
    width = width_in_parts(as_tensor(embeddings, ndim=2))
    classes = labels if method == "cid" else np.zeros(len(labels), dtype=np.int64)
    density, _ = cell_density(embeddings, classes, width, few=EXACT)
    return posterior, density, check


def check_output(path: Path, kinds: tuple[str, ...]) -> Path:
    """Refuse, before anything is computed, a file of another kind or in a place that cannot be written to."""
    if path.suffix not in kinds:
        raise ValueError(f"{path} ends in none of {', '.join(kinds)}; name the output so")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    trial = path.with_name(f".{path.name}.try")
    try:
        tables.write(trial, lambda file: None)
        trial.unlink()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); name another place"
        ) from None
    return path


def only_column(table: pd.DataFrame, but: tuple[str, ...], where: str) -> str:
    """Return the one column that can be the label; ValueError if there are several or none."""
    named = [name for name in table if not UNNAMED.fullmatch(str(name))]
    columns = [name for name in named if name != tables.IMAGE and name not in but]
    if len(columns) == 1:
        return columns[0]
    have = f"it has {tables.listed(columns)}" if columns else "it has no column for it"
    raise ValueError(f"which column of {where} is the label? Name it by --label; {have}")


def say_time(n: int, dimension: int) -> None:
    """Say how long comparing all images with each other will take, from a small part of it."""
    if n < SLOW:
        return
    rows = np.random.default_rng(0).normal(size=(1024, dimension)).astype(np.float32)
    others = np.tile(rows, (8, 1))
    _compare(rows, others)  # the first call wakes threads up
    began = perf_counter()
    _compare(rows, others)
    seconds = (perf_counter() - began) * (n / len(rows)) * (n / len(others))
    say(f"comparing {n:,} images with each other: about {seconds:,.0f} seconds")


def _compare(rows: np.ndarray, others: np.ndarray) -> None:
    import torch

    (torch.from_numpy(rows) @ torch.from_numpy(others).T).topk(30, dim=1)


def _check_sizes(labels: np.ndarray, known: list[str], column: str) -> None:
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    if max(counts.values()) == 1:
        raise ValueError(
            f"column {column!r} has one image of each of its {len(known)} classes, so no class can be "
            "compared with another; name the column of the label, not one of names or numbers"
        )
    if len(known) > tables.MEASURED and not all(tables.is_number(name) for name in known):
        say(
            f"warning: column {column!r} holds {len(known)} different texts, such as {known[0]!r}, each taken "
            "as a class of its own; if they name people, name the column of the label by --label"
        )
    few = [name for name in known if counts[name] < FEW]
    if few:
        more = f" (and {len(few) - 1} more such classes)" if len(few) > 1 else ""
        say(
            f"warning: class {few[0]!r} has {counts[few[0]]} images{more}, which get the total weight of a "
            "whole class; leave them out, join classes, or say --class-prior empirical"
        )


def _tell(found: Weighed, known: list[str], labels: np.ndarray) -> None:
    from cid.weights import effective_sample_size

    n = len(labels)
    share = effective_sample_size(found.weights)
    print(f"images: {n:,} of {len(known)} classes ({tables.listed(known)})")
    print(
        f"effective sample size: {share * n:,.0f} of {n:,} ({share:.0%}); largest weight "
        f"{found.weights.max():.3g}"
    )
    if found.recall < 1:
        print(
            f"neighbours found: {found.recall:.3f} of the nearest; surprise is within {found.off:.1%} of its exact "
            "value for 95 of 100 images (measured on 1,000)"
        )
    said = f"probability of an image's own label {found.right:.3f}, by class frequencies {found.chance:.3f}"
    if found.better_than_chance:
        print(f"neighbours tell the label better than chance ({said}): weights can matter")
    else:
        print(
            f"neighbours tell the label no better than chance ({said}): weights will do nothing beyond "
            "balancing the classes"
        )
