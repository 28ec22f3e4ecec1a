"""Write a first study of the data at hand: ``studies/NAME.yaml``, on base-2, with what fits the data.

    python -m study new my-faces --task smiling

Chosen are the kind of bias, its levels, the images of a person and the ablations, by how many images of each
class people have; comments say why, and how large an effect would be found. Identities and labels are counted
for this, as a study uses them anyway; nothing is trained.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cid.auditing import FEWEST
from study.commands import parser
from study.experiment.design import (
    FEW,
    WITHOUT_IDENTITIES,
    check_draws,
    is_known,
    most_in_training,
    number_of_classes,
    usable_identities,
)
from study.experiment.levels import CORRELATED, REPEATED, built_level, minority_images
from study.faces import dataset
from study.faces.tasks import class_names, classes_of, task_labels
from study.methods.registry import METHODS
from study.pipeline import cost, kept, notebook, params
from study.store import write_text

ENOUGH = 40  # people for whom a smaller bias is not worth more people
LEAST = 3  # people, of whom one is never seen in training
HELD_OUT_SHARE = 0.2  # of the images, where nobody is known
FEW_IMAGES = 200  # held-out images, of which perhaps a tenth is surprised
SPLITS = 5  # of such images: random, so that they share most of them
COHORT = 100  # people of a cohort, where there are many more: a training set stays small
SIZES = (20, 14, 8, 6)  # training images of a person; with fewer there is hardly a bias to build
TESTS = (5, 2, 1)  # test images of each class of a person
MINORITIES = {20: (10, 5, 2, 1), 14: (7, 3, 1), 8: (4, 2, 1), 6: (3, 1)}  # images, from no bias on
COMPARED = ("erm", "balanced", "inverse-density", "cid", "cid-kernel", "cid-knn", "surprise", "jtt", "oracle", "oracle-tempered")  # fmt: skip
VARIED = ("erm", "cid", "surprise", "oracle")


@dataclass(frozen=True)
class Design:
    """How training sets are drawn, and how many people can take part.

    Attributes
    ----------
    kind, levels, images_per_identity, test_per_class
        Of the section ``bias``.
    people : int
        Those who can take part, after each class is the majority of equally many.
    """

    kind: str
    levels: tuple[float, ...]
    images_per_identity: int
    test_per_class: int
    people: int


def balanced(table) -> int:
    """Count the people of :func:`usable_identities` who are left once majorities are balanced."""
    can = table.loc[table["usable"]].filter(regex=r"^majority_\d+$").to_numpy()
    if can.shape[1] > 2:
        return most_in_training(table, CORRELATED)
    only_0 = int((can[:, 0] & ~can[:, 1]).sum())
    only_1 = int((can[:, 1] & ~can[:, 0]).sum())
    both = len(can) - only_0 - only_1
    return len(can) - max(0, abs(only_0 - only_1) - both)


def minorities(classes: int) -> dict[int, tuple[int, ...]]:
    """By how many training images a person has: how many are of minority classes, from no bias on."""
    if classes == 2:
        return MINORITIES
    sizes = (4 * classes, 2 * classes)
    return {size: (size - size // classes, size // 4, 1) for size in sizes}


def made(identities, labels, images: int, tests: int, levels: Sequence[float], kind: str) -> Design:
    """The design of these numbers, with the people whom it leaves."""
    table = usable_identities(identities, labels, images, tests, kind, levels)
    people = balanced(table) if kind == CORRELATED else int(table["usable"].sum())
    return Design(kind, tuple(levels), images, tests, people)


def correlated(identities, labels) -> Design:
    """The design with a bias that is built: as strong and with as many levels as enough people allow."""
    several = []
    single = []
    classes = number_of_classes(labels)
    for images, rare in minorities(classes).items():
        even = images - images / classes  # images of minority classes where there is no bias
        levels = [built_level(1 - m / even, images, classes=classes) for m in rare]
        for tests in TESTS:
            several.append((images, tests, levels))
            single.append((images, tests, levels[-1:]))
    best = None
    for people in (ENOUGH, FEW):
        for images, tests, levels in [*several, *single]:
            found = made(identities, labels, images, tests, levels, CORRELATED)
            if found.people >= people:
                return found
            if best is None or found.people > best.people:
                best = found
    return best


def as_found(identities, labels) -> Design:
    """The design of the data as they are: with as many test images as enough people allow."""
    designs = [made(identities, labels, 8, tests, [0.0], "natural") for tests in (3, 2, 1)]
    for people in (ENOUGH, FEW):
        for found in designs:
            if found.people >= people:
                return found
    return designs[-1]


def choose(identities, labels) -> tuple[Design, str]:
    """Choose a design for people and labels; return it, and a sentence on why.

    Raises
    ------
    ValueError
        If fewer than :data:`LEAST` people could be tested.
    """
    built = correlated(identities, labels)
    natural = as_found(identities, labels)
    if max(built.people, natural.people) < LEAST:
        raise ValueError(
            f"{natural.people} people have an image of each class to train and one to test, and a study needs "
            f"{LEAST}; {WITHOUT_IDENTITIES}"
        )
    strongest = built.levels[-1]
    classes = number_of_classes(labels)
    minority = minority_images(strongest, built.images_per_identity, classes)
    of_both = "both classes" if classes == 2 else f"all {classes} classes"
    share = np.nanmean(np.asarray(labels, dtype=float))
    if built.people >= FEW or built.people >= natural.people:
        why = (
            f"{built.people} people have the images for a bias that is built: up to {minority} of "
            f"{built.images_per_identity} training images are of {_minority(classes)}, and each class "
            "is the majority of equally many people."
        )
        if built.people < FEW:
            why += f" Fewer than {FEW} people give little power."
        return built, why
    why = (
        f"Only the data as they are can be studied. To build a bias, at least {FEW} people must have enough "
        f"images of {of_both}, and each class must be the majority of equally many people; here it would "
        f"be {built.people}."
    )
    if classes == 2 and not 0.2 <= share <= 0.8:
        why += f" Label 1 is on {share:.1%} of the images, so it is the majority of few people or of most."
    why += (
        f" Everybody's images train; {natural.people} people are tested, who have at least "
        f"{natural.test_per_class + 1} of each class."
    )
    if natural.people < FEW:
        why += f" Fewer than {FEW} people give little power."
    return natural, why


def choose_task(data: dataset.Labels) -> str:
    """The attribute for which a study has most people; the first of equals."""
    people = data.identities()

    def number(task: str) -> tuple[bool, int]:
        built = correlated(people, data.labels(task))
        return built.people >= FEW, max(built.people, as_found(people, data.labels(task)).people)

    if len(data.card["attributes"]) == 1 or not is_known(people).any():
        return data.card["attributes"][0]
    return max(data.card["attributes"], key=number)


def compose(data: dataset.Labels, task: str) -> str:
    """The text of ``studies/NAME.yaml`` for a task, without the prediction of its power."""
    people = data.identities()
    labels = task_labels(data, task)
    if not is_known(people).any():
        return _compose_without_people(data, task)
    design, why = choose(people, labels)
    known = is_known(people)
    takes_part = labelled(labels)
    natural = design.kind == "natural"
    many = not natural and design.people > 1.5 * COHORT
    withheld = natural and not known[takes_part].all()
    level = design.levels[-1]
    seen = (COHORT if many else design.people) * 0.8
    smallest = int(takes_part.sum() / 2) if natural else int(seen * design.images_per_identity)

    head = [
        f"The data: {takes_part.sum():,} images with this label, of {len(np.unique(people[known])):,} people"
        + (f", and {(~known).sum():,} of people whom nobody knows" if not known.all() else "")
        + f". {_shares(labels, task)}",
        why,
    ]
    if withheld:
        head.append(
            "Methods that use the true identities of all training images, such as the oracle, are left out, as "
            "some have none."
        )
    elif not known[takes_part].all():
        head.append(
            "Images of unknown people take no part; under `kind: natural` they would train."
        )
    lines = _top(head, data, task)
    lines += [
        "bias:",
        f"  kind: {design.kind}",
        f"  levels: {list(design.levels)}{_levels_comment(design, number_of_classes(labels))}",
    ]
    unused = "  # unused: all images train" if natural else "  # that train"
    lines += [
        f"  images_per_identity: {design.images_per_identity}{unused}",
        f"  test_per_class: {design.test_per_class}  # of each class of a person, held out",
    ]
    if many:
        lines += [
            f"  people: {COHORT}  # of {design.people}, so that a training set stays small",
            f"  cohorts: {REPEATED}  # seeds take such groups in turn",
        ]
    methods = _allowed(COMPARED, withheld)
    varied = _allowed(VARIED, withheld)
    kinds = [design.kind]
    if not natural:
        tailed = made(people, labels, design.images_per_identity, design.test_per_class, design.levels, "longtail")  # fmt: skip
        if tailed.people >= max(FEW, COHORT if many else 0):
            kinds.append("longtail")
    lines += [
        "seeds: 20  # training sets of a level",
        f"methods: [{', '.join(methods)}]",
        "",
        "# Variations, always with linear heads.",
        f"breadth: {{tasks: [{_quoted(task)}], kinds: [{', '.join(kinds)}], methods: [{', '.join(varied)}]}}",
        f"proxies: {{level: {level}, noise: [0.4], zooms: [], controls: [], methods: [{', '.join(varied)}]}}",
        f"ablation: {{level: {level}, seeds: 4, methods: [{', '.join(varied)}]}}",
        "ablations:",
        "  l2: {setting: train.l2, values: [0.01, 0.1, 1.0, auto, own]}",
    ]
    neighbours = [number for number in (3, 5, 10, 20) if 4 * number <= smallest]
    if neighbours:
        values = ", ".join(map(str, neighbours))
        lines.append(f"  neighbours: {{setting: weights.neighbours, values: [{values}, auto]}}")
    classes = number_of_classes(labels)
    if not natural and design.images_per_identity > min(minorities(classes)):
        sizes = [size for size in sorted(minorities(classes)) if size <= design.images_per_identity]
        even = 1 - 1 / classes
        sizes = [size for size in sizes if minority_images(level, size, classes) < size * even]
        lines.append(f"  images: {{setting: bias.images_per_identity, values: {sizes}}}")
    if not natural and not many:
        fewer = [number for number in (25, 50) if number < design.people * 0.9]
        if fewer:
            lines.append(f"  people: {{setting: bias.people, values: [{', '.join(map(str, fewer))}, null]}}")  # fmt: skip
    return "\n".join(lines) + "\n"


def _top(sentences: Iterable[str], data: dataset.Labels, task: str) -> list[str]:
    """The lines that every study begins with."""
    first = (
        f"A first study of {data.card['name']!r}: {task}. Written by `python -m study new` for the data at "
        "hand; edit what you like. Keys that are not here are those of base-2.yaml, where comments explain "
        "them."
    )
    return [
        _comment(first, *sentences),
        "",
        "base: base-2",
        f"data: {_quoted(data.card['name'])}",
        f"task: {_quoted(task)}",
        "",
        "protocol:",
        "  status: exploratory  # confirmatory: fixed before the first run, on data nobody has looked at",
        "  note: a first look, with a design that was chosen by counting images",
        "",
    ]


def _compose_without_people(data: dataset.Labels, task: str) -> str:
    """As :func:`compose`, for data of which nobody is known."""
    labels = task_labels(data, task)
    images = int(labelled(labels).sum())
    tested = round(HELD_OUT_SHARE * images)
    why = (
        "No image says who it shows, so only the data as they are can be studied, and nothing is said of people. "
        f"{tested:,} images are held out at random, and models are judged on them by the audit of `cid`, which "
        "needs no identities and says when it must not be trusted."
    )
    if tested < FEW_IMAGES:
        why += (
            f" It needs {FEWEST} held-out images whose label is unusual for their like, so {tested:,} may be too "
            "few."
        )
    head = [
        f"The data: {images:,} images with this label. {_shares(labels, task)}",
        why,
        "Methods that use identities, such as the oracle, are left out.",
    ]
    methods = ", ".join(_allowed(COMPARED, withheld=True))
    varied = ", ".join(_allowed(VARIED, withheld=True))
    lines = [
        *_top(head, data, task),
        "bias:",
        "  kind: natural",
        "  levels: [0.0]",
        f"  unseen_share: {HELD_OUT_SHARE}  # of the images, held out",
        f"seeds: {SPLITS}  # random splits into images that train and that are held out",
        f"methods: [{methods}]",
        "",
        "# Variations compare people, and are left out here.",
        f"breadth: {{tasks: [{_quoted(task)}], kinds: [natural], methods: [{varied}]}}",
        f"proxies: {{level: 0.0, noise: [], zooms: [], controls: [], methods: [{varied}]}}",
        f"ablation: {{level: 0.0, seeds: 2, methods: [{varied}]}}",
        "ablations: {}",
    ]
    return "\n".join(lines) + "\n"


def labelled(labels: np.ndarray) -> np.ndarray:
    """Which labels are known, bool (n,)."""
    return np.isfinite(np.asarray(labels, dtype=float))


def _allowed(methods: Iterable[str], withheld: bool) -> list[str]:
    """Methods without those that use identities, if these are withheld."""
    return [name for name in methods if not (withheld and METHODS[name].uses_identities)]


def _levels_comment(design: Design, classes: int) -> str:
    if design.kind != CORRELATED:
        return ""
    images = design.images_per_identity
    counts = ", ".join(str(minority_images(level, images, classes)) for level in design.levels)
    return f"  # {counts} of {images} training images are of {_minority(classes)}"


def _minority(classes: int) -> str:
    return "a person's minority class" if classes == 2 else "a person's minority classes"


def _shares(labels: np.ndarray, task: str) -> str:
    """How many images are of which class, in words."""
    if classes_of(task) == 2:
        return f"{np.nanmean(labels):.0%} have label 1."
    counts = np.bincount(labels[labelled(labels)].astype(int), minlength=classes_of(task))
    shares = zip(class_names(task), counts / counts.sum(), strict=True)
    return f"Of the classes, {'; '.join(f'{name}: {share:.0%}' for name, share in shares)}."


def _quoted(name: str) -> str:
    """A name as YAML, in quotes where it could be read as something else."""
    plain = re.fullmatch(r"[A-Za-z_][\w-]*", name) and name.lower() not in (
        *("yes", "no", "on", "off", "true", "false", "null", "y", "n"),
    )
    return name if plain else "'" + name.replace("'", "''") + "'"


def _comment(*sentences: str) -> str:
    """Sentences as comments of a YAML file, each a paragraph."""
    paragraphs = [
        textwrap.fill(sentence, 105, initial_indent="# ", subsequent_indent="# ")
        for sentence in sentences
    ]
    return "\n#\n".join(paragraphs)


def create(name: str, task: str | None = None, folder: Path = kept.STUDIES) -> tuple[Path, str]:
    """Write a study of the data set in ``data/``; return its file and what is predicted of its power.

    Raises
    ------
    ValueError
        If there is such a study, or the data allow none.
    """
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or len(name) > 60 or kept.BASE.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a study; take letters, digits, - and _, 60 at most, and not base-N"
        )
    if path.exists():
        raise ValueError(f"{path} exists, and is not replaced; take another name, or delete it")
    data = dataset.read_faces("data", check_images=False)
    if task is not None:
        task_labels(data, task)  # refuses what is no attribute
    text = compose(data, task or choose_task(data))
    write_text(path, text)
    try:
        study = params.filled(kept.resolve(name, folder))
        notes = check_draws(data, notebook.stage_parameters("data", study))
        predicted = cost.power(study, cost.count_tested(study))
    except BaseException:
        path.unlink()
        raise
    at = text.index("\nbase: ")
    power = predicted if predicted == cost.UNKNOWN_POWER else f"Power: {predicted}"
    said = _comment(*notes, power)
    write_text(path, f"{text[:at]}#\n{said}\n{text[at:]}")
    return path, predicted


def main(arguments: list[str]) -> None:
    options = parser("new")
    options.add_argument("name", help="of the study: writes studies/NAME.yaml")
    options.add_argument(
        "--task",
        help="the attribute to predict, 'A x B' to cross two, or 'A | B | C' for one of several (default: the one "
        "of most people)",
    )
    args = options.parse_args(arguments)
    path, predicted = create(args.name, args.task)
    head, _, rest = path.read_text(encoding="utf-8").partition("\nbase: ")
    print(head)
    print(f"{path} is written. Run it: python -m study run {args.name}")
