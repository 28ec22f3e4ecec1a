"""The model that params.yaml names, trained on every training set by every method."""

import numpy as np
import pandas as pd

from cid.heads import Heads
from cid.models import get_model, read_options
from cid.options import NetworkOptions
from cid.schedule import HELD_OUT, is_open
from study.experiment.network_runs import train_networks
from study.experiment.penalties import BASELINE
from study.experiment.runs import train_sets
from study.methods.registry import get_method

# What a network's weights are before training, by what info calls it.
STARTS = {"imagenet": "ImageNet weights", "recognition": "its weights", "scratch": "scratch"}


def train_model(
    sets: pd.DataFrame,
    features,
    images,
    labels,
    methods: list[str],
    train: dict,
    *,
    penalties: pd.DataFrame | None = None,
    folder=None,
    rank: int = 0,
    world: int = 1,
) -> tuple[pd.DataFrame, str]:
    """Train the model that ``train.model`` names, linear heads or a network.

    Parameters
    ----------
    sets, labels, methods, folder, rank, world
        As in :func:`study.experiment.network_runs.train_networks`; linear heads are fitted together, by
        every process.
    features : float32 array, shape (n, d)
        For models that take features.
    images : array, shape (n, c, h, w), or None
        For the other models: from :func:`study.faces.dataset.read_images`.
    train : dict
        The section ``train`` of params.yaml.
    penalties : pandas.DataFrame, optional
        As in :func:`study.experiment.runs.train_sets`.

    Returns
    -------
    predictions : pandas.DataFrame
        As from :func:`study.experiment.runs.train_sets`.
    sentence : str
        What was trained.

    Raises
    ------
    ValueError
        On an unknown model, wrong options, or no images for a model that takes them.
    """
    name = train["model"]
    if name == "linear":
        predictions, fitted = train_sets(
            sets,
            features,
            labels,
            methods,
            train,
            penalties=penalties,
            folder=folder,
            progress="fit heads",
        )
        sentence = _sentence_of_heads(list(fitted.values()), features.shape[1])
        return predictions, " ".join([sentence, *sentences_of_penalties(penalties)])

    model = get_model(name)
    options = read_options(name, train["network"])
    takes = "faces" if model.side else "activations" if model.maps else None
    if takes and images is None:
        raise ValueError(
            f"train.model is {name}, which takes {takes}, and there are none in build/embed; run the "
            "stage embed again"
        )
    predictions, info = train_networks(
        sets,
        images if takes else features,
        labels,
        methods,
        name,
        options,
        folder=folder,
        progress="networks",
        rank=rank,
        world=world,
    )
    return predictions, _sentence_of_networks(info, model.title, options)


def _sentence_of_heads(fitted: list[Heads], features: int) -> str:
    gradient = np.concatenate([heads.gradient for heads in fitted])
    gradient = gradient[~np.isnan(gradient)]  # of ensembles, which are not linear, it is not known
    return (
        f"{len(gradient):,} linear heads on {features:,} features converged (largest gradient left: "
        f"{gradient.max():.0e} of the initial one)."
    )


def sentences_of_penalties(penalties: pd.DataFrame | None) -> list[str]:
    """Say how the penalty of linear heads was chosen; nothing where it is given as a number."""
    if penalties is None or penalties["loss"].isna().all():
        return []
    chosen = penalties[penalties["chosen"]]
    low, high = f"{chosen['l2'].min():g}", f"{chosen['l2'].max():g}"
    values = low if low == high else f"{low} to {high}"
    sets = int(penalties["sets"].max())
    on = "a training set" if sets == 1 else f"up to {sets} training sets"
    if set(penalties["method"]) == {BASELINE}:
        return [
            f"Their L2 penalty, {values}, is the same for every method of a bias level: that under which "
            f"ERM has the smallest five-fold cross-validated log loss on {on} of the level, by class "
            "labels alone."
        ]
    return [
        f"Each method's L2 penalty, {values}, is the one under which its own weighted log loss, five-fold "
        f"cross-validated on {on} of the level, is smallest."
    ]


def _sentence_of_networks(info: pd.DataFrame, title: str, options: NetworkOptions) -> str:
    start = STARTS[info["initialised"].iloc[0]]
    right = info.groupby("method", sort=False)["accuracy"].mean()
    low = f"{right.min():.1%} ({get_method(right.idxmin()).title})"
    high = f"{right.max():.1%} ({get_method(right.idxmax()).title})"
    sentence = (
        f"{len(info):,} networks ({title}), trained from {start}; at the end they had {low} to {high} "
        "of their training images right, in the mean of a method."
    )
    if is_open(options):
        epochs, decays = (
            " to ".join(dict.fromkeys(f"{value:g}" for value in (column.min(), column.max())))
            for column in (info["epochs"], info["weight_decay"])
        )
        sentence += (
            f" They had {epochs} epochs and a weight decay of {decays}, the same for every method of a bias "
            f"level; where the parameters say auto, this was chosen for ERM by the log loss on {HELD_OUT:.0%} "
            "of the images of the level's first training set, by class labels alone."
        )
    if options.held_out:
        first, middle, last = (f"{epoch:.0f}" for epoch in info["epoch"].quantile([0, 0.5, 1]))
        sentence += (
            f" Of {info['epochs'].max()} epochs one between {first} and {last} stayed (median {middle}), by the "
            f"class-balanced loss on {options.held_out:.0%} of the training images, which trained nothing."
        )
    return sentence
