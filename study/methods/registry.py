"""The registry of methods, and the one place where identities are withheld.

A method receives the class labels, the proxy embeddings and its settings; identities reach only a
method that declares that it uses them. So "without identity labels" is a property of the code and not a
promise.

Importing this module is cheap, because whoever checks a parameter file or draws a figure reads the names
and facts in it; torch and scikit-learn are imported by the functions that compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

import study.methods
from cid.names import find, suggest
from cid.settings import Options, field_types
from study.methods.base import Method, Sample, TrainingStack, fit_weighted

if TYPE_CHECKING:
    from cid.heads import Heads

# In the order in which methods are listed; a file that is not among them comes after these.
FAMILIES = ("weighting", "robust", "two_stage", "ula", "erase", "logits", "prototypes")
# By setting, the exponents of the factors that it estimates.
RAISED = {
    "tau": ("power", "rarity"),
    "posterior_tau": ("surprise",),
    "neighbours": ("surprise",),
    "sharpness": ("surprise",),
}
JUDGED = ("surprise", "cid", "cid-power")  # methods that verdicts are about, if they were run


def _discovered() -> dict[str, Method]:
    """Every :class:`Method` that a module of this package defines, by name."""

    def place(module) -> tuple[int, str]:
        name = module.__name__.rpartition(".")[2]
        return (FAMILIES.index(name) if name in FAMILIES else len(FAMILIES), name)

    methods = {}
    for module in sorted(study.methods.MODULES, key=place):
        for value in vars(module).values():
            if isinstance(value, Method):
                if value.name in methods:
                    raise ValueError(f"there are two methods {value.name!r}; rename one")
                methods[value.name] = value
    return methods


METHODS = _discovered()
# A column of weights that no method made, such as one of another width, is trained by its weights.
UNNAMED = Method(name="", title="", colour="#4d4d4d", uses=(), summary="")


def get_method(name: str) -> Method:
    """Look a method up by name, or say which there are."""
    return find("method", name, METHODS)


def _trained_as(name: str) -> Method:
    return METHODS.get(name, UNNAMED)


def kind_of(name: str) -> str | None:
    """How networks are trained under a method, a key of cid.options.KINDS; None: heads only."""
    return _trained_as(name).network


def is_weighted(name: str) -> bool:
    """Whether a method's heads are trained by their weights and nothing more."""
    return _trained_as(name).fit is fit_weighted


def needed_column(name: str) -> str | None:
    """Name of the column, in a table of training sets, of what a method needs besides weights."""
    needs = _trained_as(name).needs
    return f"{name}:{needs}" if needs else None


def needed_columns(table, name: str) -> list[str]:
    """Names of the columns, in a table of training sets, of what a method needs besides weights.

    One, or one a class, ``NAME:offset:0``, ...; none where it needs nothing or the table lacks it.
    """
    column = needed_column(name)
    if column is None or column in table:
        return [column] if column else []
    columns = []
    while f"{column}:{len(columns)}" in table:
        columns.append(f"{column}:{len(columns)}")
    return columns


def weigh_settings(name: str, section: Mapping[str, Any]) -> Options:
    """The settings by which a method weighs, from the section ``weights`` of params.yaml.

    Keys that are not the method's are left out; one that is missing has its default.
    """
    return _own_settings(get_method(name).weigh_settings, section)


def fit_settings(name: str, section: Mapping[str, Any]) -> Options:
    """The settings by which a method trains heads, from the section ``train.robust`` of params.yaml."""
    return _own_settings(_trained_as(name).fit_settings, section)


def check_fit_settings(section: Mapping[str, Any]) -> None:
    """Raise a ValueError on a key of ``train.robust`` that is no method's setting."""
    known = all_fit_settings()
    for key in section:
        if key not in known:
            raise ValueError(
                f"train.robust.{key} is unknown{suggest(key, known)}; delete or rename it"
            )


def _own_settings(cls: type[Options], section: Mapping[str, Any]) -> Options:
    return cls(
        **{field.name: section[field.name] for field in fields(cls) if field.name in section}
    )


def all_weigh_settings() -> dict[str, tuple[Any, Any]]:
    """Type and default of every key of the section ``weights``, by name."""
    return _together(method.weigh_settings for method in METHODS.values())


def all_fit_settings() -> dict[str, tuple[Any, Any]]:
    """Type and default of every key of the section ``train.robust``, by name."""
    return _together(method.fit_settings for method in METHODS.values())


def _together(classes) -> dict[str, tuple[Any, Any]]:
    settings = {}
    for cls in classes:
        types = field_types(cls)
        for field in fields(cls):
            both = types[field.name], field.default
            if settings.setdefault(field.name, both) != both:
                raise ValueError(f"two methods define the setting {field.name!r}; rename one")
    return settings


def reading(names: Iterable[str], setting: str) -> list[str]:
    """The methods among ``names`` whose weights depend on a key of the section ``weights``."""
    return [n for n in names if setting in field_types(get_method(n).weigh_settings)]


def fitting_by(names: Iterable[str], setting: str) -> list[str]:
    """The methods among ``names`` whose training depends on a key of the section ``train.robust``."""
    return [n for n in names if setting in field_types(_trained_as(n).fit_settings)]


def without_effect(name: str, setting: str, section: Mapping[str, Any]) -> str:
    """The exponents, if all are 0, that leave a setting of a method's weights without effect, or no text.

    A factor to the power of 0 is 1, whatever its density or posterior was estimated with.
    """
    own = weigh_settings(name, section)
    exponents = [key for key in RAISED.get(setting, ()) if hasattr(own, key)]
    if exponents and not any(getattr(own, key) for key in exponents):
        return " and ".join(f"weights.{key}" for key in exponents)
    return ""


def balancing(names: Iterable[str], section: Mapping[str, Any]) -> list[str]:
    """The methods among ``names`` whose weights give every class the same total weight.

    These are the ones with the setting ``class_prior``, where the section ``weights`` of params.yaml has
    it balanced.
    """
    settings = {name: weigh_settings(name, section) for name in names}
    return [n for n, own in settings.items() if getattr(own, "class_prior", None) == "balanced"]


def weighing_code(name: str) -> list[str]:
    """Dotted names of the functions that weigh by a method: what its kept weights depend on."""
    method = get_method(name)
    functions = [method.weigh, *([method.needed] if method.needed else [])]
    return ["study.methods.base.Sample", *map(_dotted, functions)]


def training_code(name: str, classes: int = 2) -> list[str]:
    """Dotted names of the functions that train heads by a method: what its kept heads depend on."""
    heads = ["cid.heads.fit_heads", "study.methods.base.TrainingStack"]
    if classes > 2:
        heads = ["cid.softmax.fit_softmax_heads", "study.methods.stacks.SoftmaxStack"]
    return [*heads, _dotted(_trained_as(name).fit)]


def of_two_classes(names: Iterable[str]) -> list[str]:
    """The methods among ``names`` whose form is for two classes only."""
    return [name for name in names if _trained_as(name).two_classes]


def _dotted(function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def training_weights(
    name: str,
    embeddings,
    labels,
    identities,
    settings: Mapping[str, Any],
    shared: dict | None = None,
) -> np.ndarray:
    """Weigh a training set by a method.

    Parameters
    ----------
    name : str
        A key of :data:`METHODS`.
    embeddings, labels, identities
        As in :class:`study.methods.base.Sample`; identities may be None where no method uses them.
    settings : mapping
        The section ``weights`` of params.yaml; a key that is missing has its default.
    shared : dict, optional
        Passed to several calls with the same embeddings, labels and settings, it spares work.

    Returns
    -------
    float64 array, shape (n,)
        Of mean 1.

    Raises
    ------
    ValueError
        If the method is unknown, or needs identities and there are none, or on unusable arrays and
        settings.
    """
    from cid.arrays import array

    method = get_method(name)
    sample = _sample(method, embeddings, labels, identities, shared)
    weights = method.weigh(sample, weigh_settings(name, settings))
    weights = array("weights", weights).astype(np.float64)
    sound = (
        weights.shape == np.shape(labels) and np.isfinite(weights).all() and (weights >= 0).all()
    )
    if not (sound and abs(weights.mean() - 1) < 1e-3):
        raise ValueError(
            f"the method {name} gives weights that are not one finite number of at least 0 for each image "
            "with mean 1; mend its file in study/methods/"
        )
    return weights


def training_needs(
    name: str,
    embeddings,
    labels,
    identities,
    settings: Mapping[str, Any],
    shared: dict | None = None,
) -> np.ndarray | None:
    """What a method needs besides weights: int codes of groups (n,), or float log-odds (n,), of more than two
    classes offsets (n, C); or None.

    Arguments and errors are those of :func:`training_weights`.
    """
    method = get_method(name)
    sample = _sample(method, embeddings, labels, identities, shared)
    if method.needed is None:
        return None
    return np.asarray(method.needed(sample, weigh_settings(name, settings)))


def _sample(method: Method, embeddings, labels, identities, shared: dict | None) -> Sample:
    """The sample as a method may see it: the one place where identities are withheld."""
    from cid.arrays import class_codes

    labels, _ = class_codes(labels)
    if not method.uses_identities:
        return Sample(embeddings, labels, None, {} if shared is None else shared)
    if identities is None:
        raise ValueError(f"method {method.name!r} needs identities and none were given")
    people, _ = class_codes(identities, len(labels), "identities")
    return Sample(embeddings, labels, people)  # what such a method computes stays with it


def fit_method(
    stack: TrainingStack, name: str, weights, needed=None, settings: Mapping[str, Any] | None = None
) -> Heads:
    """Train linear heads by a method on every training set of a stack.

    Parameters
    ----------
    stack : TrainingStack
    name : str
        A key of :data:`METHODS`; any other name is trained by its weights.
    weights : array, shape (seeds, n)
    needed : array, shape (seeds, n), optional
        What :func:`training_needs` returns, of every set.
    settings : mapping, optional
        The section ``train.robust`` of params.yaml; a key that is missing has its default.

    Returns
    -------
    Heads
        One a seed.

    Raises
    ------
    ValueError
        If something is needed and missing, and as :func:`cid.heads.fit_heads`.
    """
    method = _trained_as(name)
    if method.needs is None:
        needed = None
    elif needed is None:
        raise ValueError(f"the method {name} needs {method.needs} and none were given")
    return method.fit(stack, stack.sampled(weights), needed, fit_settings(name, settings or {}))


def fit_weighted_methods(stack: TrainingStack, weights: list[np.ndarray]) -> list[Heads]:
    """Train several methods whose heads are trained by weights (seeds, n) alone, in one go."""
    return stack.fit_each([stack.sampled(own) for own in weights])
