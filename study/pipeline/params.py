"""What may stand in params.yaml, checked before anything runs.

    python -m study params        check params.yaml; one line names the first thing that is wrong

Every command of the pipeline checks the whole file before it starts, so that a slip in the settings of
the last stage does not cost the hours of those before it. What depends on the data (does this attribute
exist?) is checked by the stage ``data``, before anything is embedded.
"""

import ast
import io
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StringConstraints,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark, MarkedYAMLError, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken

import cid
from cid.names import find, suggest
from cid.options import NetworkOptions
from cid.settings import (
    Count,
    CountFrom2,
    Positive,
    ShareBelow1,
    Text,
    Truth,
    one_of,
    rule,
)
from cid.settings import read as read_options
from study.commands import parser, run_renamed
from study.errors import check_repository
from study.experiment import mislabelled
from study.experiment.levels import KINDS, REPEATED, built_levels
from study.faces.network_files import DIGITS, OnnxOptions, is_file, pinned
from study.faces.tasks import classes_of
from study.methods.registry import (
    METHODS,
    all_fit_settings,
    all_weigh_settings,
    balancing,
    fitting_by,
    kind_of,
    of_two_classes,
    reading,
    without_effect,
)

PARAMS = Path("params.yaml")
FIXED = {  # what an ablation cannot vary, and why
    "bias.levels": "an ablation has one level, ablation.level",
    "train.model": "an ablation is of linear heads",
    "train.network": "an ablation is of linear heads",
}


class NullAsWord(RoundTripRepresenter):
    """Writes None as ``null``; by default ruamel.yaml writes nothing."""


NullAsWord.add_representer(
    type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _registered(module: str, name: str) -> tuple[str, ...]:
    """Keys of a registry of ``cid``, read from its source: to import these modules takes seconds."""
    tree = ast.parse(Path(cid.__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            return tuple(ast.literal_eval(key) for key in node.value.keys)
    raise LookupError(f"cid.{module} has no registry {name}")


def _some(kind: Any) -> Any:
    """A list of at least one."""
    return Annotated[list[kind], Field(min_length=1)]


def _each_once(what: str) -> AfterValidator:
    """Refuse a list that holds a value twice."""

    def checked(values: list) -> list:
        if len({f"{v:g}" if isinstance(v, float) else v for v in values}) < len(values):
            raise PydanticCustomError("must", "{sentence}", {"sentence": f"names {what} twice"})
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


Noise = rule("a number above 0, 1e6 at most", float, Gt(0), Le(1e6))
Zoom = rule("a number from 0.1 to 10", float, Ge(0.1), Le(10))
Level = rule("a number from 0 to 1", float, Ge(0), Le(1))
Significance = rule("a number between 0 and 1", float, Gt(0), Lt(1))
Seeds = rule("a whole number of at least 2, 10,000 at most", int, Ge(2), Le(10_000))
People = rule("a whole number of at least 2, or null", Annotated[int, Ge(2)] | None)
Penalty = rule(
    "a number above 0, 1e30 at most, or auto, or own",
    Annotated[float, Gt(0), Le(1e30)] | Literal["auto", "own"],
    names=["auto", "own"],
)
Cohorts = rule("true, false or repeated", bool | Literal[REPEATED], names=[REPEATED])
Bootstrap = rule("a whole number of at least 20, 1e6 at most", int, Ge(20), Le(10**6))

Kind = one_of(*KINDS)
NETWORKS = _registered("recognition", "NETWORKS")
NETWORK = f"{', '.join(NETWORKS)} or an ONNX file, path/to/model.onnx@ and {DIGITS} or more digits of its SHA-256"
Network = Annotated[rule(NETWORK, str), AfterValidator(_network)]
Networks = Annotated[list[Network], _each_once("a network")]
DETECTORS = _registered("detection", "DETECTORS")
# What parameters from before there was a choice meant, by key of `embed`.
EMBED = {"detector": "mtcnn", "mirror": False}
Methods = Annotated[_some(one_of(*METHODS)), AfterValidator(_with_baseline), _each_once("a method")]
Name = rule(
    "letters, digits, -, _ and dots inside, 60 at most",
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.+[A-Za-z0-9_-]+)*$", max_length=60),
)


class Section(BaseModel):
    """A mapping of params.yaml: no key may be unknown or missing, no value is converted."""

    model_config = {"strict": True, "allow_inf_nan": False}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values):
        known = cls.model_fields
        for key in values if isinstance(values, Mapping) else ():
            if key not in known:  # first of all: a misspelt name is also one that is missing
                missing = [name for name in known if name not in values]
                near = suggest(key, missing) or suggest(key, known)
                raise PydanticCustomError("unknown", f"{key} is unknown{near}; delete or rename it")
        return values


class Detectable(Section):
    accuracy: Positive
    minority_accuracy: Positive
    level: Significance = 0.05  # of the tests, which protocols from before it was named leave out


class Protocol(Section):
    status: one_of("exploratory", "confirmatory", "rerun")
    note: Text
    detectable: Detectable | None


class Embed(Section):
    network: Network
    trunk: Network
    precision: one_of("single", "half")
    detect: Truth
    detector: one_of(*DETECTORS) = EMBED["detector"]
    mirror: Truth = EMBED["mirror"]
    onnx: dict[str, Any] = {}  # checked by study.faces.network_files.OnnxOptions


class Bias(Section):
    kind: Kind
    levels: _some(Level)
    images_per_identity: CountFrom2
    test_per_class: Count
    unseen_share: ShareBelow1
    people: People
    cohorts: Cohorts

    @model_validator(mode="after")
    def _fits(self):
        if sorted(set(self.levels)) != self.levels:
            raise ValueError("levels must rise, each given once")
        if self.kind == "natural" and self.levels != [0.0]:
            raise ValueError("kind natural takes the data as they are: write levels: [0.0]")
        if self.kind == "correlation" and self.images_per_identity % 2:
            raise ValueError("images_per_identity must be even, so that level 0 halves it")
        if self.cohorts and self.people is None:
            shown = str(self.cohorts).lower()
            raise ValueError(f"cohorts is {shown}, so people must say how many one holds")
        return self


# The settings of all methods that weigh, and of all that train linear heads in a way of their own. They
# are declared, with their defaults, where the methods are: in study/methods/.
Weights = create_model("Weights", __base__=Section, **all_weigh_settings())
Robust = create_model("Robust", __base__=Section, **all_fit_settings())


class Train(Section):
    model: one_of("linear", *_registered("models", "MODELS"))
    l2: Penalty
    through: one_of("loss", "sampler")
    robust: Robust
    network: dict[str, Any]  # checked by cid.options.NetworkOptions

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
    data: rule("the name of a data set, or null", str | None)
    task: Text
    protocol: Protocol
    embed: Embed
    bias: Bias
    seeds: Seeds
    bootstrap: Bootstrap
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
        heads_only = [name for name in self.methods if kind_of(name) is None]
        if heads_only and self.train.model != "linear":
            raise ValueError(
                f"methods has {heads_only[0]}, which trains linear heads only, but train.model is "
                f"{self.train.model}; drop {', '.join(heads_only)}, or write model: linear"
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
        alone = self.bias.kind == "natural" and "balanced" not in self.methods
        if alone and (balances := self._balancing()):
            raise ValueError(
                f"bias.kind is natural, under which {balances[0]} is compared with balanced, as it balances "
                "classes, too; add balanced to methods"
            )
        if "natural" in self.breadth.kinds and self.bias.levels != [0.0]:
            raise ValueError("breadth.kinds has natural, which needs bias.levels: [0.0]; drop it")
        return self

    def _balancing(self) -> list[str]:
        return balancing(self.methods, {"class_prior": self.weights.class_prior})


def parsed(path: str | Path) -> Any:
    """What a YAML file holds, by the parser that DVC uses, which takes a tenth of a second for dvc.lock.

    A text is parsed once in a process, however often its file is read.
    """
    return parsed_text(Path(path).read_bytes())


def parsed_text(text: bytes) -> Any:
    """As :func:`parsed`, of what a file holds."""
    return pickle.loads(_parsed(text))  # a copy: callers change what they get


@lru_cache(maxsize=512)
def _parsed(text: bytes) -> bytes:
    return pickle.dumps(YAML(typ="safe").load(text))


def read(path: str | Path = PARAMS) -> dict:
    """Read the parameters of a study; settings of methods that the file leaves out have their defaults.

    A ``ValueError`` says in one line the file, the key, what it holds, and what it may hold or the
    nearest name.
    """
    return filled(load(path))


def load(path: str | Path = PARAMS) -> dict:
    """As :func:`read`, with nothing but what the file says; by the parser that DVC uses."""
    if not Path(path).is_file():
        raise ValueError(
            f"{path} is missing in {Path.cwd()}; run this in the root of the repository, or restore "
            f"the file with `git checkout {path}`"
        )
    try:
        tree = parsed(path)
    except (YAMLError, RecursionError) as error:
        mark = isinstance(error, MarkedYAMLError) and (error.problem_mark or error.context_mark)
        where = f"{path}, line {mark.line + 1}" if mark else path
        raise ValueError(f"{where}: {_problem(error)}; mend it") from None
    check(tree, path)
    return tree


def filled(tree: Mapping) -> dict:
    """Add the default of every setting of a method, and of `embed`, that parameters leave out."""
    weights = {name: default for name, (_, default) in all_weigh_settings().items()}
    robust = {name: default for name, (_, default) in all_fit_settings().items()}
    train = tree["train"] | {"robust": robust | tree["train"]["robust"]}
    return {
        **tree,
        "embed": tree["embed"] | {key: EMBED[key] for key in EMBED if key not in tree["embed"]},
        "weights": weights | tree["weights"],
        "train": train,
    }


def resolved_text(path: str | Path = PARAMS) -> str:
    """The text of a parameter file, comments included, with every setting of :func:`filled` written out.

    A report then shows the value of each setting, also after a default has changed.
    """
    tree = load(path)
    resolved = filled(tree)
    text = Path(path).read_text(encoding="utf-8")
    if resolved == tree:
        return text
    yaml = YAML()
    yaml.width = 105
    yaml.Representer = NullAsWord
    document = yaml.load(text)
    _append(document["embed"], resolved["embed"])
    _append(document["weights"], resolved["weights"])
    _append(document["train"]["robust"], resolved["train"]["robust"])
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _append(section: CommentedMap, settings: Mapping) -> None:
    """Append the settings that a section lacks, before the blank line that ends it."""
    missing = {name: value for name, value in settings.items() if name not in section}
    comments = section.ca.items.get(next(reversed(section), None))
    section.update(missing)
    section.fa.set_block_style()  # one setting a line, also where the file has {}
    if missing and comments and comments[2] and comments[2].value.endswith("\n\n"):
        comments[2].value = comments[2].value[:-1]
        blank = CommentToken("\n\n", CommentMark(0), None)
        section.ca.items[next(reversed(section))] = [None, None, blank, None]


def _problem(error: YAMLError | RecursionError) -> str:
    """What the YAML parser found, on one line."""
    return " ".join(str(getattr(error, "problem", None) or error).split())


def check(tree: Any, path: str | Path = PARAMS) -> None:
    """Raise the ``ValueError`` of :func:`read` if parameters are not valid."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds no keys; start again from the committed one")
    _check(tree, f"{path}: ")
    tree = filled(tree)
    bias = tree["bias"]
    classes = classes_of(tree["task"])
    _check_methods(path, tree)
    _check_levels(f"{path}: bias.levels", bias["levels"], bias, classes)
    for kind in tree["breadth"]["kinds"]:
        for classes_of_task in sorted({classes_of(task) for task in tree["breadth"]["tasks"]}):
            of_kind = bias | {"kind": kind}
            _check_levels(f"{path}: bias.levels", bias["levels"], of_kind, classes_of_task)
    _check_levels(f"{path}: proxies.level", [tree["proxies"]["level"]], bias, classes)
    _check_levels(f"{path}: ablation.level", [tree["ablation"]["level"]], bias, classes)
    known = {f"{part}.{key}": 0 for part in ("bias", "weights", "train") for key in tree[part]}
    known |= dict.fromkeys(mislabelled.KINDS, 0)
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
        if setting in mislabelled.KINDS:
            _check_shares(f"{where}.values", values)
            continue
        section, _, key = setting.partition(".")
        methods = tree["ablation"]["methods"]
        if section == "weights" and not reading(methods, key):
            raise ValueError(
                f"{where}.setting is {setting}, which no method of ablation.methods reads, so its figure would "
                f"be flat; add {' or '.join(reading(METHODS, key))} to them, or drop this ablation"
            )
        if section == "weights" and all(
            without_effect(name, key, tree["weights"]) for name in reading(methods, key)
        ):
            exponents = without_effect(reading(methods, key)[0], key, tree["weights"])
            raise ValueError(
                f"{where}.setting is {setting}, which is without effect where {exponents} is 0, so its "
                "figure would be flat; raise that, or drop this ablation"
            )
        if setting == "train.robust":
            _check_robust(where, values, methods)
        for number, value in enumerate(values):  # every one must be what the setting may have
            if setting == "bias.people" and value is None and bias["cohorts"]:
                continue  # cohorts need a number: the stage `ablate` leaves this value out
            changed = {**tree, section: {**tree[section], key: value}}
            _check(changed, f"{where}.values: ")
            _check_levels(f"{where}.values", [tree["ablation"]["level"]], changed["bias"], classes)
            if value in values[:number]:
                raise ValueError(f"{where}.values has {value!r} twice; drop one")


def _check_robust(where: str, values: Sequence, methods: Sequence[str]) -> None:
    """Refuse values of ``train.robust`` that differ in nothing that a method of the ablation reads."""
    if not all(isinstance(value, Mapping) for value in values):
        return  # which is said of every value on its own
    keys = sorted({key for value in values for key in value})
    differ = [key for key in keys if any(v.get(key) != values[0].get(key) for v in values)]
    if differ and not any(fitting_by(methods, key) for key in differ):
        readers = " or ".join(sorted({name for key in differ for name in fitting_by(METHODS, key)}))
        raise ValueError(
            f"{where}.values differ in {', '.join(differ)}, which no method of ablation.methods reads, so "
            f"its figure would be flat; add {readers or 'one that does'} to them, or drop this ablation"
        )


def _check_shares(where: str, values: Sequence) -> None:
    """Refuse what are no shares of wrong labels."""
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= mislabelled.MOST
        ):
            raise ValueError(
                f"{where} has {value!r}; a share of wrong labels is 0 to {mislabelled.MOST}"
            )
    if len(set(values)) < len(values):
        raise ValueError(f"{where} has a share twice; drop one")


def _check_methods(path: str | Path, tree: Mapping) -> None:
    """Refuse what is made for two classes where a task has more."""
    lists = {
        "methods": ([tree["task"]], tree["methods"]),
        "breadth.methods": (tree["breadth"]["tasks"], tree["breadth"]["methods"]),
        "proxies.methods": ([tree["task"]], tree["proxies"]["methods"]),
        "ablation.methods": ([tree["task"]], tree["ablation"]["methods"]),
    }
    for name, (tasks, methods) in lists.items():
        many = [task for task in tasks if classes_of(task) > 2]
        binary = of_two_classes(methods)
        if many and binary:
            raise ValueError(
                f"{path}: {name} has {', '.join(binary)}, made for two classes, and {many[0]} has "
                f"{classes_of(many[0])}; take {'it' if len(binary) == 1 else 'them'} out"
            )
    if classes_of(tree["task"]) > 2 and tree["train"]["model"] != "linear":
        raise ValueError(
            f"{path}: train.model is {tree['train']['model']}, which is trained for two classes, and "
            f"{tree['task']} has {classes_of(tree['task'])}; write model: linear"
        )


def _check_levels(where: str, levels: Sequence[float], bias: Mapping, classes: int) -> None:
    """Refuse levels that cannot be built, or that build the same sets."""
    try:
        built_levels(levels, bias["images_per_identity"], bias["kind"], classes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check(tree: Mapping, where: str) -> None:
    try:
        Params.model_validate(tree)
    except ValidationError as error:
        raise ValueError(where + _sentence(error.errors()[0])) from None
    read_options(OnnxOptions, tree["embed"].get("onnx", {}), f"{where}embed.onnx")
    read_options(NetworkOptions, tree["train"]["network"], f"{where}train.network")


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
