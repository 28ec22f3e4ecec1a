"""The model that params.yaml names, trained on every training set by every method."""

import pandas as pd

from cid.heads import Heads
from cid.models import get_model, read_options
from cid.options import NetworkOptions
from study.experiment.network_runs import train_networks
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
            folder=folder,
            progress="fit heads",
        )
        heads = Heads.joined(list(fitted.values()))
        return predictions, _sentence_of_heads(heads, features.shape[1])

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


def _sentence_of_heads(heads: Heads, features: int) -> str:
    return (
        f"{len(heads.weight)} linear heads on {features:,} features converged (largest gradient left: "
        f"{heads.gradient.max():.0e} of the initial one)."
    )


def _sentence_of_networks(info: pd.DataFrame, title: str, options: NetworkOptions) -> str:
    start = STARTS[info["initialised"].iloc[0]]
    right = info.groupby("method", sort=False)["accuracy"].mean()
    low = f"{right.min():.1%} ({get_method(right.idxmin()).title})"
    high = f"{right.max():.1%} ({get_method(right.idxmax()).title})"
    sentence = (
        f"{len(info)} networks ({title}), trained from {start}; at the end they had {low} to {high} "
        "of their training images right, in the mean of a method."
    )
    if options.held_out:
        first, middle, last = (f"{epoch:.0f}" for epoch in info["epoch"].quantile([0, 0.5, 1]))
        sentence += (
            f" Of {options.epochs} epochs one between {first} and {last} stayed (median {middle}), by the "
            f"class-balanced loss on {options.held_out:.0%} of the training images, which trained nothing."
        )
    return sentence
