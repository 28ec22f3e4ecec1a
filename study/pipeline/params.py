"""What may stand in params.yaml, checked before anything runs.

    python -m study.pipeline.params        check params.yaml; one line names the first thing that is wrong

Every command of the pipeline checks the whole file before it starts, so that a slip in the settings of
the last stage does not cost the hours of those before it. What depends on the data (does this attribute
exist?) is checked by the stage that reads them.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

PARAMS = Path("params.yaml")


# As registered in cid.methods and study.faces.embed, whose imports would cost seconds here; a test compares.
METHODS = (
    "erm", "balanced", "inverse-density", "cid", "cid-kernel", "cid-knn", "surprise", "cvar-dro", "kl-dro",
    "jtt", "lff", "cluster-dro", "oracle", "group-dro", "last-layer",
)  # fmt: skip


NETWORKS = ("dlib-resnet", "facenet-vggface2", "facenet-casia")


Positive = Annotated[float, Field(gt=0)]


Share = Annotated[float, Field(ge=0, lt=1)]


Level = Annotated[float, Field(ge=0, le=1)]


Count = Annotated[int, Field(ge=1)]


Method = Literal[METHODS]


Methods = Annotated[list[Method], Field(min_length=1)]


Network = Literal[NETWORKS]


Kind = Literal["correlation", "longtail", "natural"]


Auto = Literal["auto"]


Name = Annotated[str, Field(pattern=r"^[\w][\w.-]*$")]


class Section(BaseModel):
    """A mapping of params.yaml: no key may be unknown or missing, no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Embed(Section):
    network: Network
    trunk: Network
    precision: Literal["single", "half"]
    detect: bool


class Bias(Section):
    kind: Kind
    levels: Annotated[list[Level], Field(min_length=1)]
    images_per_identity: Annotated[int, Field(ge=2)]
    test_per_class: Count
    unseen_share: Share
    people: Annotated[int, Field(ge=2)] | None

    @model_validator(mode="after")
    def _fits(self):
        if sorted(set(self.levels)) != self.levels:
            raise ValueError("levels must rise, each given once")
        if self.kind == "natural" and self.levels != [0.0]:
            raise ValueError("kind natural takes the data as they are: write levels: [0.0]")
        return self


class Weights(Section):
    tau: Positive | Auto
    power: Annotated[float, Field(ge=0)]
    class_prior: Literal["balanced", "empirical"]
    include_self: bool
    rarity: Annotated[float, Field(ge=0)]
    surprise: Annotated[float, Field(ge=0)] | Auto
    neighbours: Count | Auto
    posterior_tau: Positive | Auto
    keep_class_direction: bool
    local_scaling: bool
    clusters: Count | Auto


class Robust(Section):
    alpha: Annotated[float, Field(gt=0, le=1)]
    tilt: Positive
    group_tilt: Positive
    jtt_l2: Positive
    jtt_upweight: Positive
    lff_q: Annotated[float, Field(gt=0, le=1)]
    lff_rounds: Count
    draws: Count


class Train(Section):
    model: Literal["linear", "mlp", "cnn", "resnet18", "resnet50"]
    l2: Positive
    through: Literal["loss", "sampler"]
    robust: Robust
    network: dict[str, Any]  # checked against cid.networks.Options, which depends on the model

    @model_validator(mode="after")
    def _fits(self):
        if self.model == "linear" and self.network:
            raise ValueError("network has options, but model linear takes none: write network: {}")
        return self


class Breadth(Section):
    tasks: Annotated[list[str], Field(min_length=1)]
    kinds: Annotated[list[Kind], Field(min_length=1)]
    methods: Methods


class Proxies(Section):
    level: Level
    noise: list[Positive]
    zooms: list[Positive]
    methods: Methods


class Ablation(Section):
    level: Level
    seeds: Annotated[int, Field(ge=2)]
    methods: Methods


class Varied(Section):
    setting: str
    values: Annotated[list[Any], Field(min_length=1)]


class Params(Section):
    """The whole of params.yaml."""

    study: Name
    task: str
    embed: Embed
    bias: Bias
    seeds: Annotated[int, Field(ge=2)]
    bootstrap: Annotated[int, Field(ge=20)]
    methods: Methods
    weights: Weights
    train: Train
    breadth: Breadth
    proxies: Proxies
    ablation: Ablation
    ablations: dict[Name, Varied]

    @model_validator(mode="after")
    def _fits(self):
        for where, methods in (
            ("methods", self.methods),
            ("breadth.methods", self.breadth.methods),
            ("proxies.methods", self.proxies.methods),
            ("ablation.methods", self.ablation.methods),
        ):
            if "erm" not in methods:
                raise ValueError(f"{where} lacks erm, the baseline of every difference")
            if len(set(methods)) < len(methods):
                raise ValueError(f"{where} names a method twice")
        if "natural" in self.breadth.kinds and self.bias.levels != [0.0]:
            raise ValueError(
                "breadth.kinds has natural, which needs bias.levels: [0.0]; take it out"
            )
        return self


def read(path: str | Path = PARAMS) -> dict:
    """The checked parameters of a study, by the parser DVC uses.

    Raises
    ------
    ValueError
        One line: the file, the key, what it holds, and what it may hold or the nearest valid name.
    """
    tree = YAML(typ="safe").load(Path(path))
    check(tree, path)
    return tree


def check(tree: Any, path: str | Path = PARAMS) -> None:
    """Raise the ``ValueError`` that :func:`read` describes if a tree of parameters is not valid."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds no keys; start again from the committed one")
    try:
        Params.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: {_sentence(error, tree)}") from None
    for name, varied in tree["ablations"].items():
        _check_ablation(name, varied, tree, path)


def _check_ablation(name: str, varied: dict, tree: dict, path) -> None:
    """Every value of an ablation must be one that its setting may have."""
    where = f"ablations.{name}"
    section, _, key = varied["setting"].partition(".")
    known = [f"{part}.{last}" for part in ("bias", "weights", "train") for last in tree[part]]
    if varied["setting"] not in known:
        raise ValueError(
            f"{path}: {where}.setting is {varied['setting']!r}{_nearest(varied['setting'], known)}"
        )
    for value in varied["values"]:
        changed = {**tree, section: {**tree[section], key: value}}
        try:
            Params.model_validate(changed)
        except ValidationError as error:
            raise ValueError(f"{path}: {where}.values: {_sentence(error, changed)}") from None


def _sentence(error: ValidationError, tree: Mapping) -> str:
    """The first thing that is wrong, as one sentence."""
    # An unknown key first: where a name is misspelt, "missing" would be said of the right one.
    found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = found[0]
    # Of a union pydantic reports every alternative, under a place that ends in the alternative's name.
    place = _place(first["loc"], tree)
    same = [e for e in found if _place(e["loc"], tree) == place]
    key = re.sub(r"\.(\d+)\b", r"[\1]", ".".join(map(str, place)))
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        section = tree
        for part in place[:-1]:
            section = section[part]
        model = _model(place[:-1])
        missing = [name for name in model if name not in section]
        return f"{key} is unknown{_nearest(str(place[-1]), missing or list(model))}; delete or rename it"
    if kind == "missing":
        return f"{key} is missing; copy its line from the committed file"
    if kind == "value_error":
        prefix = f"{key}: " if key else ""
        return prefix + str(first["ctx"]["error"])
    allowed = "; or ".join(dict.fromkeys(_allowed(e) for e in same))
    near = ""
    for e in same:
        if e["type"] == "literal_error" and isinstance(value, str):
            near = near or _nearest(value, re.findall(r"'([^']+)'", e["ctx"]["expected"]), False)
    return f"{key} is {value!r}; it must be {allowed}{near}"


def _place(loc: tuple, tree: Any) -> tuple:
    """The part of an error's place that exists in the tree, or its last key where that is missing."""
    place = []
    for part in loc:
        if isinstance(tree, Mapping) and (part in tree or isinstance(part, str)):
            place.append(part)
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            place.append(part)
            tree = tree[part]
        else:
            break
    return tuple(place)


def _model(place: tuple) -> list[str]:
    """Names of the keys of a section."""
    model: Any = Params
    for part in place:
        annotation = model.model_fields[part].annotation if part in model.model_fields else Varied
        model = annotation if isinstance(annotation, type) else Varied
        if not issubclass(model, BaseModel):
            return []
    return list(model.model_fields)


def _allowed(e: Mapping) -> str:
    """What a value may be, by pydantic's kind of error."""
    ctx = e.get("ctx", {})
    bounds = {
        "greater_than": "above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "below {lt}",
        "less_than_equal": "at most {le}",
        "too_short": "a list of at least {min_length}",
    }
    if e["type"] in bounds:
        return bounds[e["type"]].format(
            **{
                name: f"{bound:g}"
                for name, bound in ctx.items()
                if name != "field_type" and not isinstance(bound, str)
            }
        )
    if e["type"] == "literal_error":
        return ctx["expected"].replace("'", "")
    names = {
        "float_type": "a number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "bool_type": "true or false",
        "string_type": "a text",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "none_required": "null",
        "string_pattern_mismatch": "letters, digits, -, _ and dots",
    }
    return names.get(e["type"], e["msg"].lower())


def _nearest(word: str, known, sentence: bool = True) -> str:
    near = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.5)
    if not near and sentence:
        return f" (known: {', '.join(map(str, known))})" if known else ""
    return f" (did you mean {near[0]!r}?)" if near else ""


def main() -> int:
    """Entry point of ``python -m study.pipeline.params``; returns the exit status."""
    try:
        read()
    except (ValueError, OSError, YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
