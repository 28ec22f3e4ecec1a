"""What may stand in params.yaml, checked before anything runs.

    python -m study params        check params.yaml; one line names the first thing that is wrong

Every command of the pipeline checks the whole file before it starts, so that a slip in the settings of
the last stage does not cost the hours of those before it. What depends on the data (does this attribute
exist?) is checked by the stage ``data``, before anything is embedded.
"""

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

import cid
from cid import options
from cid.names import find, suggest
from study.commands import parser, run_renamed
from study.errors import check_repository
from study.experiment.levels import built_levels
from study.experiment.methods import METHODS, kind_of
from study.experiment.options import HEADS_ONLY, HeadOptions
from study.faces.network_files import DIGITS, OnnxOptions, is_file, pinned

PARAMS = Path("params.yaml")
FIXED = {  # what an ablation cannot vary, and why
    "bias.levels": "an ablation has one level, ablation.level",
    "train.model": "an ablation is of linear heads",
    "train.network": "an ablation is of linear heads",
}


def _registered(module: str, name: str) -> tuple[str, ...]:
    """Keys of a registry of ``cid``, read from its source: to import these modules takes seconds."""
    tree = ast.parse(Path(cid.__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            return tuple(ast.literal_eval(key) for key in node.value.keys)
    raise LookupError(f"cid.{module} has no registry {name}")


def _a(be: str, kind: Any, names: Sequence[str] = (), **bounds) -> Any:
    """A kind of value within bounds; whatever is wrong with one, it is told what it must be."""

    def checked(value, handler):
        try:
            return handler(value)
        except ValidationError:
            near = suggest(value, names) if isinstance(value, str) else ""
            raise PydanticCustomError("must", f"is {value!r}; it must be {be}{near}") from None

    return Annotated[kind, Field(**bounds), WrapValidator(checked)]


def _one_of(*names: str) -> Any:
    said = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return _a(said, Literal[names], names)


def _or_auto(be: str, kind: type, **bounds) -> Any:
    return _a(f"{be}, or auto", Annotated[kind, Field(**bounds)] | Literal["auto"], ["auto"])


def _some(kind: Any) -> Any:
    return Annotated[list[kind], Field(min_length=1)]


def _each_once(what: str) -> AfterValidator:
    def checked(values: list) -> list:
        if len({f"{v:g}" if isinstance(v, float) else v for v in values}) < len(values):
            raise PydanticCustomError("must", "{said}", {"said": f"names {what} twice"})
        return values

    return AfterValidator(checked)


def _network(name: str) -> str:
    """A name of the registry, or of a file, whose checksum must be the one given if it is there: that
    it is missing, and whether it can be run, is said by the stage that runs it."""
    if not is_file(name) and name not in NETWORKS:
        said = f"is {name!r}; it must be {NETWORK}{suggest(name, NETWORKS)}"
        raise PydanticCustomError("must", "{said}", {"said": said})
    with suppress(FileNotFoundError):
        if is_file(name):
            pinned(name)
    return name


def _with_baseline(methods: list[str]) -> list[str]:
    if "erm" not in methods:
        raise PydanticCustomError("must", "lacks erm, the baseline of every difference")
    if len(methods) == 1:
        raise PydanticCustomError("must", "holds erm alone; name a method to compare with it")
    return methods


Positive = _a("a number above 0, 1e30 at most", float, gt=0, le=1e30)
Noise = _a("a number above 0, 1e6 at most", float, gt=0, le=1e6)
Zoom = _a("a number from 0.1 to 10", float, ge=0.1, le=10)
Exponent = _a("a number from 0 to 1e6", float, ge=0, le=1e6)
Level = _a("a number from 0 to 1", float, ge=0, le=1)
AtLeast2 = _a("a whole number of at least 2", int, ge=2)
Seeds = _a("a whole number of at least 2, 10,000 at most", int, ge=2, le=10_000)
Truth = _a("true or false", bool)
Text = _a("a text", str)
PositiveOrAuto = _or_auto("a number above 0", float, gt=0)
CountOrAuto = _or_auto("a whole number of at least 1", int, ge=1)

Kind = _one_of("correlation", "longtail", "natural")
NETWORKS = _registered("recognition", "NETWORKS")
NETWORK = f"{', '.join(NETWORKS)} or an ONNX file, path/to/model.onnx@ and {DIGITS} or more digits of its SHA-256"
Network = Annotated[_a(NETWORK, str), AfterValidator(_network)]
Networks = Annotated[list[Network], _each_once("a network")]
Methods = Annotated[
    _some(_one_of(*METHODS)), AfterValidator(_with_baseline), _each_once("a method")
]
Name = _a(
    "letters, digits, -, _ and dots inside, 60 at most",
    str, pattern=r"^[A-Za-z0-9_-]+(\.+[A-Za-z0-9_-]+)*$", max_length=60,
)  # fmt: skip


class Section(BaseModel):
    """A mapping of params.yaml: no key may be unknown or missing, no value is converted."""

    model_config = {"strict": True, "allow_inf_nan": False}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values):
        known = cls.model_fields
        for key in values if isinstance(values, Mapping) else ():
            if key not in known:  # first of all: a misspelt name is also one that is missing
                near = suggest(key, [k for k in known if k not in values] or known)
                raise PydanticCustomError("unknown", f"{key} is unknown{near}; delete or rename it")
        return values


class Detectable(Section):
    accuracy: Positive
    minority_accuracy: Positive


class Protocol(Section):
    status: _one_of("exploratory", "confirmatory")
    note: Text
    detectable: Detectable | None


class Embed(Section):
    network: Network
    trunk: Network
    precision: _one_of("single", "half")
    detect: Truth
    onnx: dict[str, Any] = {}  # checked by cid.options


class Bias(Section):
    kind: Kind
    levels: _some(Level)
    images_per_identity: AtLeast2
    test_per_class: _a("a whole number of at least 1", int, ge=1)
    unseen_share: _a("a number of at least 0 and below 1", float, ge=0, lt=1)
    people: _a("a whole number of at least 2, or null", int | None, ge=2)
    cohorts: Truth

    @model_validator(mode="after")
    def _fits(self):
        if sorted(set(self.levels)) != self.levels:
            raise ValueError("levels must rise, each given once")
        if self.kind == "natural" and self.levels != [0.0]:
            raise ValueError("kind natural takes the data as they are: write levels: [0.0]")
        if self.kind == "correlation" and self.images_per_identity % 2:
            raise ValueError("images_per_identity must be even, so that level 0 halves it")
        if self.cohorts and self.people is None:
            raise ValueError("cohorts is true, so people must say how many one holds")
        return self


class Weights(Section):
    tau: _or_auto("a number from 1e-9 to 1e9", float, ge=1e-9, le=1e9)
    power: Exponent
    temper: Exponent
    class_prior: _one_of("balanced", "empirical")
    include_self: Truth
    rarity: Exponent
    surprise: _or_auto("a number from 0 to 1e6", float, ge=0, le=1e6)
    neighbours: CountOrAuto
    posterior_tau: PositiveOrAuto
    keep_class_direction: Truth
    local_scaling: Truth
    clusters: CountOrAuto
    bias_l2: Positive = 1.0
    erase_clusters: CountOrAuto = 2


class Train(Section):
    model: _one_of("linear", *_registered("networks", "MODELS"))
    l2: Positive
    through: _one_of("loss", "sampler")
    robust: dict[str, Any]  # these two are checked by cid.options
    network: dict[str, Any]

    @model_validator(mode="after")
    def _fits(self):
        if self.model == "linear" and self.network:
            raise ValueError("network has options, but model linear takes none: write network: {}")
        return self


class Breadth(Section):
    tasks: Annotated[_some(Text), _each_once("a task")]
    kinds: Annotated[_some(Kind), _each_once("a kind")]
    methods: Methods


class Proxies(Section):
    level: Level
    noise: Annotated[list[Noise], _each_once("a length")]
    zooms: Annotated[list[Zoom], _each_once("a zoom")]
    methods: Methods
    controls: Networks = []  # as in studies from before there were any, like the next
    trunks: Networks = []


class Ablation(Section):
    level: Level
    seeds: Seeds
    methods: Methods


class Varied(Section):
    setting: Text
    values: _some(Any)


class Params(Section):
    """The whole of params.yaml."""

    study: Name
    data: _a("the name of a data set, or null", str | None)
    task: Text
    protocol: Protocol
    embed: Embed
    bias: Bias
    seeds: Seeds
    bootstrap: _a("a whole number of at least 20, 1e6 at most", int, ge=20, le=10**6)
    methods: Methods
    weights: Weights
    train: Train
    breadth: Breadth
    proxies: Proxies
    ablation: Ablation
    ablations: dict[Name, Varied]

    @model_validator(mode="after")
    def _fits(self):
        if self.study.lower() == "index.html":
            raise ValueError(
                "study is index.html, as is the list of all studies; name it otherwise"
            )
        if self.train.model == "finetune" and self.embed.trunk != "dlib-resnet":
            raise ValueError(
                f"train.model is finetune, which trains the last block of dlib-resnet, but embed.trunk "
                f"is {self.embed.trunk}; write trunk: dlib-resnet"
            )
        only = [m for m in self.methods if kind_of(m) in HEADS_ONLY]
        if only and self.train.model != "linear":
            raise ValueError(
                f"methods has {only[0]}, which trains linear heads only, but train.model is "
                f"{self.train.model}; drop {', '.join(only)}, or write model: linear"
            )
        networks = [
            self.embed.network,
            self.embed.trunk,
            *self.proxies.controls,
            *self.proxies.trunks,
        ]
        if self.embed.onnx and not any(map(is_file, networks)):
            raise ValueError(
                "embed.onnx has options, but no network is an ONNX file: write onnx: {}"
            )
        if "natural" in self.breadth.kinds and self.bias.levels != [0.0]:
            raise ValueError("breadth.kinds has natural, which needs bias.levels: [0.0]; drop it")
        return self


def read(path: str | Path = PARAMS) -> dict:
    """The parameters of a study, by the parser DVC uses; ``ValueError`` says in one line the file, the
    key, what it holds, and what it may hold or the nearest name."""
    if not Path(path).is_file():
        raise ValueError(
            f"{path} is missing in {Path.cwd()}; run this in the root of the repository, or restore "
            f"the file with `git checkout {path}`"
        )
    try:
        tree = YAML(typ="safe").load(Path(path))
    except (YAMLError, RecursionError) as error:
        mark = isinstance(error, MarkedYAMLError) and (error.problem_mark or error.context_mark)
        where = f"{path}, line {mark.line + 1}" if mark else path
        raise ValueError(f"{where}: {_problem(error)}; mend it") from None
    check(tree, path)
    return tree


def _problem(error: YAMLError | RecursionError) -> str:
    """What the YAML parser found, on one line."""
    return " ".join(str(getattr(error, "problem", None) or error).split())


def check(tree: Any, path: str | Path = PARAMS) -> None:
    """Raise the ``ValueError`` of :func:`read` if parameters are not valid."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds no keys; start again from the committed one")
    _check(tree, f"{path}: ")
    bias, kinds = tree["bias"], dict.fromkeys([tree["bias"]["kind"], *tree["breadth"]["kinds"]])
    for kind in kinds:
        _check_levels(f"{path}: bias.levels", bias["levels"], bias | {"kind": kind})
    _check_levels(f"{path}: proxies.level", [tree["proxies"]["level"]], bias)
    _check_levels(f"{path}: ablation.level", [tree["ablation"]["level"]], bias)
    known = {f"{part}.{key}": 0 for part in ("bias", "weights", "train") for key in tree[part]}
    for name, varied in tree["ablations"].items():
        where = f"{path}: ablations.{name}"
        setting, values = varied["setting"], varied["values"]
        if name.lower() == "settings":
            raise ValueError(f"{where}: settings.csv lists the ablations; name this one otherwise")
        if twins := [other for other in tree["ablations"] if other.lower() == name.lower()][1:]:
            raise ValueError(f"{where} and {twins[0]} would share a file on some disks; rename one")
        find(f"{where}.setting", setting, known)
        if setting in FIXED:
            raise ValueError(f"{where}.setting is {setting}, but {FIXED[setting]}; vary another")
        section, _, key = setting.partition(".")
        for number, value in enumerate(values):  # every one must be what the setting may have
            changed = {**tree, section: {**tree[section], key: value}}
            _check(changed, f"{where}.values: ")
            _check_levels(f"{where}.values", [tree["ablation"]["level"]], changed["bias"])
            if value in values[:number]:
                raise ValueError(f"{where}.values has {value!r} twice; drop one")


def _check_levels(where: str, levels: Sequence[float], bias: Mapping) -> None:
    """Refuse levels that cannot be built, or that build the same sets."""
    try:
        built_levels(levels, bias["images_per_identity"], bias["kind"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check(tree: Mapping, where: str) -> None:
    try:
        Params.model_validate(tree)
    except ValidationError as error:
        raise ValueError(where + _sentence(error.errors()[0])) from None
    options.read(OnnxOptions, tree["embed"].get("onnx", {}), f"{where}embed.onnx")
    options.read(HeadOptions, tree["train"]["robust"], f"{where}train.robust")
    options.read(options.NetworkOptions, tree["train"]["network"], f"{where}train.network")


def _sentence(error: Mapping) -> str:
    """What pydantic found wrong, in this file's words."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])[1:]
    said = {
        "missing": "is missing; copy its line from the committed file",
        "too_short": "is empty; it must be a list of at least 1",
        "list_type": "is {input!r}; it must be a list",
        "dict_type": "is {input!r}; it must be a mapping",
        "model_type": "is {input!r}; it must be a mapping",
        "value_error": "{ctx[error]}",
    }
    text = said.get(error["type"], "{msg}").format(**error)
    between = {"unknown": ".", "value_error": ": "}.get(error["type"], " ")
    return f"{key}{between}{text}" if key else text


def main(arguments: list[str]) -> None:
    parser("params").parse_args(arguments)
    read()
    check_repository()


if __name__ == "__main__":
    run_renamed(__spec__.name)
