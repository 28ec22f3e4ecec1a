"""Sentences about all studies, each computed from the committed reports: for README.md and docs/.

A text marks where a block belongs, as ``<!-- networks: begin -->`` and ``<!-- networks: end -->``, and
:func:`filled` writes it there. Every sentence holds whatever the tables say; prose around it says why, and
no number.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path

import pandas as pd

from study.faces.imagenet import NETWORK as IMAGENET
from study.faces.tasks import classes_of
from study.pipeline import confirmed, earlier, overview, protocols
from study.pipeline.overview import Study
from study.pipeline.reproduced import REPORTS
from study.results.claims import GAINS, HARM, OWN_TRUNK, PRIMARY
from study.results.rounding import INTERVAL
from study.results.sentences import controls_sentence, lead_sentence
from study.results.sizes import people_and_images
from study.results.tables import RIGHT, kind_of_people, markdown_table, points, verdict_words
from study.results.titles import method_title, network_title

MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
README, FINDINGS = Path("README.md"), Path("docs/findings.md")
DETECTORS = Path("docs/detectors.csv")
NEEDED = {README: ("headline",), FINDINGS: ()}  # documents, and the blocks that each must mark
JUDGED = ("surprise", "cid")  # whose verdicts are listed
ENDPOINTS = {  # what is said of a study, by metric and test set
    "accuracy": ("accuracy", "seen"),
    "minority cells": (PRIMARY[1], "seen"),
    "unseen people": ("accuracy", "unseen"),
}
SHORT = {"cid": "CID", "surprise": "label surprise", "oracle": "the oracle"}
WRONG = "labels.wrong"  # the ablation of wrong training labels at random
UNDER_WRONG_LABELS = (
    "cid", "surprise", "trusted", "cid-trusted", "surprise-trusted", "ula", "jtt", "afr", "selective", "xrm",
    "lff", "oracle",
)  # fmt: skip
# The training of cnn-45's first sets before it: a study of fewer sets, in the table of kept verdicts.
SMALLER_STUDY, LARGER_STUDY = "cnn", "cnn-45"


def documents(params: dict, studies: list[Study] | None = None) -> dict[Path, str]:
    """Every document that is here, with its blocks; ``ValueError`` if one lacks a mark that it needs.

    ``studies`` are those of :func:`overview.read_studies`, if the caller has read them.
    """
    if not (REPORTS / params["study"] / "difference.csv").exists():
        raise ValueError(
            f"{REPORTS / params['study']} holds no gains over people, and the README begins with those; run "
            "`dvc repro` with a study of people in params.yaml"
        )
    known = blocks(params, overview.read_studies() if studies is None else studies)
    texts = {}
    for path, needed in NEEDED.items():
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        for name in needed:
            begin, end = (mark.format(name) for mark in MARKS)
            if begin not in text or end not in text:
                raise ValueError(f"{path} lacks {begin} or {end}; put both around what is computed")
        texts[path] = filled(text, known)
    return texts


def filled(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """A text with every block that it marks.

    Raises
    ------
    ValueError
        If a block is begun and not ended, or is not known.
    """
    begin, end = MARKS
    opening = begin.partition("{}")[0]
    places = [part.partition(":")[0] for part in text.split(opening)[1:] if ": begin" in part[:60]]
    for name in places:
        if name not in blocks:
            raise ValueError(f"{begin.format(name)} is no block; there are {', '.join(blocks)}")
        before, _, rest = text.partition(begin.format(name))
        _, found, after = rest.partition(end.format(name))
        if not found:
            raise ValueError(f"{begin.format(name)} has no {end.format(name)} after it")
        text = f"{before}{begin.format(name)}\n{blocks[name]()}{end.format(name)}{after}"
    return text


def blocks(params: dict, studies: list[Study]) -> dict[str, Callable[[], str]]:
    """Every block by name."""
    own = REPORTS / params["study"]
    return {
        "headline": lambda: markdown_table(*overview.short_headline(own)),
        "result": lambda: f"{result(own)} {in_short(studies)}\n",
        "photographs": lambda: photographs(studies),
        "studies": lambda: study_by_study(studies),
        "faces": lambda: faces(studies),
        "detectors": detectors,
        "factors": lambda: factors(own) + "\n",
        "rivals": lambda: rivals(studies),
        "logits": lambda: weights_or_logits(studies),
        "recogniser": lambda: recogniser(studies),
        "networks": lambda: networks(studies),
        "classes": lambda: several_classes(studies),
        "wrong_labels": lambda: wrong_labels(studies),
        "left_alone": lambda: confirmed.left_alone(study.name for study in studies),
    }


# ---------------------------------------------------------------------------- words


def _table(study: str, name: str) -> pd.DataFrame:
    """A table of a report; empty where it has none."""
    path = REPORTS / study / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def _about(study: str) -> dict:
    return json.loads((REPORTS / study / "about.json").read_text(encoding="utf-8"))


def _change(low: float, high: float) -> str:
    if low > 0:
        return "gains"
    return "loses" if high < 0 else "is not shown to change"


def _listed(names: Iterable[str]) -> str:
    *names, last = names
    return f"{', '.join(names)} and {last}" if names else last


def _of_photographs(study: Study) -> bool:
    return not kind_of_people(study.card).startswith("rendered")


def _of_heads(study: Study) -> bool:
    return study.model == "linear"


# ---------------------------------------------------------------------------- the README


def result(own: Path) -> str:
    """The first result: what every method reaches at the strongest bias of the study."""
    about = json.loads((own / "about.json").read_text(encoding="utf-8"))
    level, rare = max(zip(about["levels"], about["minority"], strict=True))
    summary = pd.read_csv(own / "summary.csv").query("test == 'seen'")
    gains = pd.read_csv(own / "difference.csv").query("test == 'seen'")

    def at(table: pd.DataFrame, method: str, metric: str) -> pd.Series:
        rows = table[(table["level"] == level) & (table["method"] == method)]
        return rows[rows["metric"] == metric].iloc[0]

    def right(method: str, metric: str) -> str:
        return f"{100 * at(summary, method, metric)['mean']:.1f} %"

    def gain(method: str) -> str:
        mean, low, high = (
            f"{100 * value:+.2f}" for value in at(gains, method, "accuracy")[INTERVAL]
        )
        return f"{SHORT[method]} {mean} ({low} to {high})".replace("-", "−")

    accuracy, minority = PRIMARY
    compared = ("surprise", "cid", "oracle")
    of_minority = (f"{SHORT[method]} {right(method, minority)}" for method in compared)
    return (
        f"**Result.** When {about['images'] - rare} of each person's {about['images']} training images show one class "
        f"(*bias level* {level:g}), plain training (*ERM*) gets {right('erm', accuracy)} of the test images right. "
        f"Gains over it, in points with 95 % intervals: {_listed(map(gain, compared))}, which knows who is who. Of "
        f"images of the class that was rare for their person (*minority cells*), ERM gets {right('erm', minority)} "
        f"right, {_listed(of_minority)}."
    )


def in_short(studies: Iterable[Study]) -> str:
    """In how many studies of photographs with a protocol a method's verdict on accuracy is a gain."""
    adjectives = {protocols.CONFIRMATORY: "confirmatory {}", protocols.RERUN: "{} run again"}
    by_state = {state: _with_state(studies, state) for state in adjectives}
    sentences = []
    for method in JUDGED:
        counts = []
        for state, members in by_state.items():
            found = _grouped(members, method, "accuracy")
            gained = sum(len(names) for word, names in found.items() if word in GAINS)
            noun = adjectives[state].format(_studies(members))
            if members:
                counts.append(f"in {gained} of {len(members)} {noun}")
        if counts:
            sentences.append(f"{SHORT[method]} raises accuracy {_listed(counts)}")
    if not sentences:
        return "No study of photographs has a protocol."
    return f"On photographs, {'; '.join(sentences)}."


def _studies(members: Sized) -> str:
    return "study" if len(members) == 1 else "studies"


def _with_state(studies: Iterable[Study], state: str) -> list[Study]:
    """The studies of photographs with linear heads whose protocol has this state."""
    return [
        study
        for study in studies
        if study.protocol["status"] == state and _of_photographs(study) and _of_heads(study)
    ]


def photographs(studies: Iterable[Study]) -> str:
    """One bullet per state of a protocol: the studies of photographs by their verdict."""
    words = {
        protocols.CONFIRMATORY: "*Confirmatory*: the design was committed before the first run",
        protocols.RERUN: "*Run again*: confirmatory before, with other settings; exploratory now",
    }
    lines = []
    for state, said in words.items():
        of_state = _with_state(studies, state)
        if of_state:
            lines.append(
                f"- {said} ({len(of_state)} {_studies(of_state)}). {_by_verdict(of_state)}\n"
            )
    return "".join(lines) or "- There is no study of photographs with a protocol.\n"


def _by_verdict(studies: list[Study]) -> str:
    """Verdicts on seen people: gains in accuracy of label surprise by name, all others counted."""
    parts = []
    for method in JUDGED:
        title = SHORT[method][0].upper() + SHORT[method][1:]
        accuracy = _grouped(studies, method, "accuracy")
        if not accuracy:
            parts.append(f"{title} was not judged.")
            continue
        if method == JUDGED[0]:
            said = "; ".join(_with_names(verdict, found) for verdict, found in accuracy.items())
        else:
            said = _counted(accuracy)
        cells = _counted(_grouped(studies, method, PRIMARY[1]))
        parts.append(f"{title}, accuracy: {said}; minority cells: {cells}.")
    return " ".join(parts)


def _with_names(verdict: str, members: list[tuple[Study, str]]) -> str:
    """The studies of one verdict, each with its gain; where there is none, how many they are."""
    if verdict not in GAINS:
        return f"*{verdict}* in {len(members)}"
    names = [f"`{study.name}` {gain.partition(' ')[0]}" for study, gain in members]
    return f"*{verdict}* in {_listed(names)}"


def _counted(by_verdict: Mapping[str, list]) -> str:
    """How many studies show a gain or harm, by its verdict, and how many neither."""
    told = (*GAINS, HARM)
    parts = [f"{len(found)} *{word}*" for word, found in by_verdict.items() if word in told]
    others = sum(len(found) for word, found in by_verdict.items() if word not in told)
    if others:
        parts.append(f"{others} without a gain shown")
    return _listed(parts or ["none judged"])


def _grouped(
    studies: Iterable[Study], method: str, metric: str
) -> dict[str, list[tuple[Study, str]]]:
    """The studies and their gains by the verdict on a primary endpoint of seen people."""
    found: dict[str, list[tuple[Study, str]]] = {}
    for study in studies:
        entry = study.judged(metric, method)
        if entry and entry["effect"] is not None:
            gain = points(*(entry[key] for key in ("effect", "low", "high")))
            found.setdefault(entry["verdict"], []).append((study, gain))
    return dict(sorted(found.items(), key=lambda item: (item[0] not in GAINS, -len(item[1]))))


# ---------------------------------------------------------------------------- docs/findings.md


def study_by_study(studies: Iterable[Study]) -> str:
    """One bullet for every study of photographs with linear heads, by the state of its protocol."""
    lines = []
    for state, heading in overview.GROUPS.items():
        of_state = _with_state(studies, state)
        if of_state:
            lines.append(f"\n{heading}.\n\n")
            lines += [f"- {_study_sentence(study)}\n" for study in of_state]
    return "".join(lines) + "\n"


def _study_sentence(study: Study) -> str:
    """Who was trained and tested, how good plain training is, and what was gained, with verdicts."""
    about = _about(study.name)
    proxy = about["proxy"]
    erm = 100 * study.area.loc[("accuracy", "erm"), "mean"]
    sets = f"; a training set has {people_and_images(about['sets'])}" if "sets" in about else ""
    right = f"; right pairs {100 * proxy['right_pairs']:.0f} %" if "right_pairs" in proxy else ""
    gains = []
    for method in ("surprise", "cid", "oracle"):
        told = []
        for where, (metric, test) in ENDPOINTS.items():
            if gain := study.gain(metric, method, test):
                entry = study.judged(metric, method, test)
                told.append(f"{where} {gain}" + (f" (*{verdict_words(entry)}*)" if entry else ""))
        if told:
            gains.append(f"{SHORT[method]}: {', '.join(told)}")
    return (
        f"[`{study.name}`](../reports/{study.name}/notebooks/00_abstract.ipynb): {study.bias}; tested on "
        f"{study.people:,} seen people{sets}. Faces found: {100 * proxy['detected']:.1f} %; verification AUC "
        f"{proxy['verification_auc']:.3f}{right}. ERM {erm:.1f} %. Gains: {'; '.join(gains)}."
    )


def several_classes(studies: Iterable[Study]) -> str:
    """One bullet for every study of more than two classes, with what a guess would get right."""
    lines = []
    for study in studies:
        classes = classes_of(study.params["task"])
        if classes > 2:
            lines.append(
                f"- {classes} classes, a guess {100 / classes:g} %. {_study_sentence(study)}\n"
            )
    return "".join(lines) or "- No study has more than two classes.\n"


def faces(studies: Iterable[Study]) -> str:
    """Faces found and told apart, by data set: in the first kept report of it, and today."""
    head = ["data set", "network"]
    for endpoint, _ in earlier.FACES.values():
        head += [f"{endpoint}, before", f"{endpoint}, now"]
    rows = {}
    for study in studies:
        proxy = _about(study.name)["proxy"]
        old = {r.endpoint: r.estimate for r in earlier.before(study.name) if r.population == "all"}
        cells = []
        for key, (endpoint, _) in earlier.FACES.items():
            cells += [_share(old.get(endpoint)), _share(proxy.get(key))]
        rows.setdefault((study.card["name"], proxy["network"]), cells)
        told = _table(study.name, "proxies-controls-auc")
        for network in study.params["proxies"].get("trunks", []):
            measured = told[told["proxy"] == network].iloc[0]
            auc = _share(measured["verification AUC"])
            right = _share(measured.get(RIGHT))
            of_other = ["–", "–", "–", auc, "–", right]
            rows.setdefault((study.card["name"], network), of_other)
    return markdown_table(head, [[data, network_title(net), *c] for (data, net), c in rows.items()])


def detectors() -> str:
    """Faces found and told apart by every detector on every data set, as `benchmarks.detectors` measured."""
    measured = pd.read_csv(DETECTORS)
    head = ["data set", "images"]
    rows = {(row.data, row.images): [] for row in measured.itertuples()}
    for name, table in measured.groupby("detector"):
        head.append(f"{name}: found / AUC / right")
        for row in table.itertuples():
            numbers = (row.found, row.auc, row.right)
            rows[row.data, row.images].append(" / ".join(f"{number:.3f}" for number in numbers))
    return markdown_table(head, [[data, f"{n:,}", *cells] for (data, n), cells in rows.items()])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def factors(own: Path) -> str:
    """Whether the first factor adds anything, under a made bias and under a long tail."""
    parts = []
    lead = _table(own.name, "lead")
    rows = lead.query("test == 'seen' and metric == 'accuracy' and method == 'cid-knn'")
    if len(rows):
        row = rows.iloc[0]
        said = "differs from" if row["p_holm"] < 0.05 else "is not shown to differ from"
        parts.append(
            f"Under the bias of `{own.name}`, label surprise {said} `cid-knn`, which multiplies it by rarity, in "
            f"accuracy by {points(*row[INTERVAL])} points (p after Holm {_p(row['p_holm'])})."
        )
    breadth = _table(own.name, "breadth-area")
    tail = breadth.query("kind == 'longtail' and test == 'seen' and metric == 'accuracy'")
    tail = tail[tail["mean_difference"].notna()]
    if len(tail):
        methods = list(dict.fromkeys(tail["method"]))
        clear = tail[tail["p_holm"] < 0.05]
        gained = clear[clear["mean_difference"] > 0]
        if len(gained):
            named = [f"{method_title(row.method)} on *{row.task}*" for row in gained.itertuples()]
            said = f"accuracy is shown to gain for {_listed(named)}"
        else:
            said = "none of them is shown to gain accuracy"
        parts.append(
            f"Under a long tail, where some people have many images and others few, "
            f"{_listed(map(method_title, methods))} were run, on {tail['task'].nunique()} tasks: after Holm's "
            f"correction {said}. Other methods were not run there."
        )
    return " ".join(parts)


def _p(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else "under .01"


def rivals(studies: Iterable[Study]) -> str:
    """What label surprise is ahead of, in every study that has rivals of it."""
    lines = []
    for study in studies:
        lead = _table(study.name, "lead")
        if _of_heads(study) and {"ula", "xrm", "afr"} <= set(lead.get("method", ())):
            kind = "photographs" if _of_photographs(study) else "rendered people"
            lines.append(f"- `{study.name}` ({kind}). {lead_sentence(lead)}\n")
    return "".join(lines) or "- No study has all rivals.\n"


def weights_or_logits(studies: Iterable[Study]) -> str:
    """What label surprise gains as weights and in the logits, in every study of heads that has both."""
    rows = []
    for study in studies:
        both = ("surprise", "surprise-logits")
        if not _of_heads(study) or not all(study.gain("accuracy", method) for method in both):
            continue
        for method, use in zip(both, ("weights", "logits"), strict=True):
            gains = [study.gain(metric, method, test) for metric, test in ENDPOINTS.values()]
            rows.append([f"`{study.name}`, {use}", *(gain or "–" for gain in gains)])
    if not rows:
        return "- No study has label surprise in the logits.\n"
    return markdown_table(["study, used as", *ENDPOINTS], rows)


def recogniser(studies: Iterable[Study]) -> str:
    """Whether a face recogniser is needed, and what the heads' own features do as a proxy."""
    lines = []
    rows = []
    for study in studies:
        gains = _table(study.name, "proxies-controls")
        against = _table(study.name, "proxies-controls-against")
        if gains.empty or against.empty:
            continue
        network = _about(study.name)["proxy"]["network"]
        told = _table(study.name, "proxies-controls-auc")
        general = _of_photographs_in_general(gains, against, told)
        lines.append(f"- `{study.name}`. {controls_sentence(gains, against, network)}{general}\n")
        if study.params["proxies"].get("trunks"):
            rows += _by_proxy(study.name, network, gains, told)
    head = [
        "study, heads on",
        "proxy",
        "AUC",
        RIGHT,
        "accuracy",
        "minority cells",
        "majority cells",
        "unseen people",
    ]
    if not rows:
        return "- No study has controls of the proxy.\n"
    return "".join(lines) + "\n" + markdown_table(head, rows)


def _of_photographs_in_general(
    gains: pd.DataFrame, against: pd.DataFrame, told: pd.DataFrame
) -> str:
    """What label surprise gains with a network as the proxy that was taught on ImageNet, if one was tried."""
    first = gains["trunk"].iloc[0]
    found = []
    for table in (gains, against):
        at = table.query("test == 'seen' and metric == 'accuracy' and method == 'surprise'")
        at = at[at["trunk"] == first].set_index("proxy")[INTERVAL]
        found.append(at[at.index.map(network_title) == IMAGENET.name])
    gain, change = found
    if gain.empty or change.empty:
        return ""
    of_proxy = told[(told["trunk"] == first) & (told["proxy"] == gain.index[0])].iloc[0]
    return (
        f" With `{IMAGENET.name}`, which was taught on ImageNet and on no face (AUC "
        f"{of_proxy['verification AUC']:.2f}), it gains {points(*gain.iloc[0])}, which differs by "
        f"{points(*change.iloc[0])}."
    )


def _by_proxy(study: str, network: str, gains: pd.DataFrame, told: pd.DataFrame) -> list[list[str]]:
    """What label surprise gains with every network, the heads' own features and the true identities as proxy."""
    rows = []
    of_method = gains[gains["method"] == "surprise"]
    files = [proxy for proxy in dict.fromkeys(of_method["proxy"]) if ".onnx" in proxy]
    for trunk in dict.fromkeys(of_method["trunk"]):
        for proxy in (network, *files, OWN_TRUNK, "true identity"):
            at = of_method[(of_method["trunk"] == trunk) & (of_method["proxy"] == proxy)]
            if at.empty:
                continue
            mean = at.set_index(["test", "metric"])[INTERVAL]
            accuracy, minority = (mean.loc[("seen", metric)] for metric in PRIMARY)
            measured = told[(told["trunk"] == trunk) & (told["proxy"] == proxy)].iloc[0]
            right = measured.get(RIGHT)  # None in reports from before there were right pairs
            # Test images are balanced for every person, so half of them are minority cells.
            majority = 100 * (2 * accuracy["mean"] - minority["mean"])
            rows.append(
                [
                    f"`{study}`, {network_title(trunk)}",
                    network_title(proxy),
                    f"{measured['verification AUC']:.2f}",
                    "–" if right is None else f"{right:.2f}",
                    points(*accuracy),
                    points(*minority) if math.isfinite(minority["mean"]) else "–",
                    f"{majority:+.1f}".replace("-", "−") if math.isfinite(majority) else "–",
                    points(*mean.loc[("unseen", "accuracy")]),
                ]
            )
    return rows


def networks(studies: Iterable[Study]) -> str:
    """One bullet for every study of networks, and the order of CID and label surprise in two trainings."""
    lines = []
    for study in studies:
        if _of_heads(study):
            continue
        parts = []
        for method in study.area.index.unique("method"):
            accuracy = study.gain("accuracy", method)
            if method in ("erm", "balanced") or not accuracy:
                continue
            minority = study.gain(PRIMARY[1], method)
            cells = f" (minority cells {minority})" if minority else ""
            parts.append(f"{method_title(method)} {accuracy}{cells}")
        kind = "photographs" if _of_photographs(study) else "rendered people"
        lines.append(
            f"- `{study.name}` ({study.model}; {kind}; {study.params['seeds']} training sets; ERM "
            f"{100 * study.area.loc[('accuracy', 'erm'), 'mean']:.1f} %): {'; '.join(parts)}.\n"
        )
    return "".join(lines) + "\n" + order_from_scratch()


def order_from_scratch() -> str:
    """Whether CID or label surprise is ahead in a network from scratch, in both trainings of it."""
    rows = _table(LARGER_STUDY, "lead")
    if rows.empty:
        return ""
    row = rows.query("test == 'seen' and metric == 'accuracy' and method == 'cid'").iloc[0]
    told = "is told apart from" if row["p_holm"] < 0.05 else "is not told apart from"
    text = (
        f"From scratch (`{LARGER_STUDY}`), label surprise {told} CID in accuracy: the difference is "
        f"{points(*row[INTERVAL])} points (p after Holm {_p(row['p_holm'])})."
    )
    key = ("accuracy", "surprise", "cid")
    before = [
        old
        for old in earlier.before(SMALLER_STUDY)
        if (old.endpoint, old.method, old.reference) == key and old.population == "seen"
    ]
    if before:
        old = before[0]
        text += (
            f" The first of these sets had been trained once before, as a study of their own: then it was "
            f"{points(old.estimate, old.low, old.high)} (p after Holm {_p(old.p_holm)}; commit {old.commit}). "
        )
        same = (old.estimate > 0) == (row["mean"] > 0)
        text += (
            "Both trainings have the same sign."
            if same
            else "The two trainings differ in sign, so neither order is a result."
        )
    return text + "\n"


# ---------------------------------------------------------------------------- labels that are wrong


def wrong_labels(studies: Iterable[Study]) -> str:
    """ERM's accuracy on seen people by the share of wrong training labels, and the gains of some methods."""
    found = []
    for study in studies:
        settings = _table(study.name, "ablate-settings")
        asked = [] if settings.empty else settings.loc[settings["setting"] == WRONG, "name"]
        for name in asked:
            baselines = _table(study.name, "ablate-baselines").astype({"value": str})
            gains = _table(study.name, f"ablate-{name}").astype({"value": str})
            plain = _at(baselines[baselines["ablation"] == name], "erm")
            found.append((study.name, plain, gains))
    shares = sorted({share for _, plain, _ in found for share in plain.index}, key=float)
    rows = []
    for name, plain, gains in found:
        rows.append([f"`{name}`", method_title("erm"), *_percentages(plain, shares)])
        for method in UNDER_WRONG_LABELS:
            gained = _at(gains, method)
            if not gained.empty:
                rows.append(["", method_title(method), *_points_at(gained, shares)])
    head = ["study", "method", *(f"{float(share):.0%} wrong" for share in shares)]
    return markdown_table(head, rows)


def _at(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method's rows of accuracy on seen people, by value."""
    at = (table["method"] == method) & (table["metric"] == "accuracy") & (table["test"] == "seen")
    return table[at].set_index("value")


def _percentages(rows: pd.DataFrame, values: Iterable[str]) -> list[str]:
    known = rows["mean"]
    return [f"{100 * known[value]:.1f} %" if value in known else "–" for value in values]


def _points_at(rows: pd.DataFrame, values: Iterable[str]) -> list[str]:
    columns = ["mean", "low", "high"]
    return [points(*rows.loc[value, columns]) if value in rows.index else "–" for value in values]
