"""Where a report comes from, and whether its numbers came out again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from study import cli
from study.pipeline import params, protocols, provenance, publish, reproduced
from study.results.rounding import MOVES

ROOT = Path(__file__).parents[3]


def commit_all() -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["add", "."], ["commit", "-qm", "all"]):
        subprocess.run(["git", *identity, *command], check=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The committed report, settings and code in a repository of their own."""
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("cid", "study", "people", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    report = tmp_path / "reports" / "virtual-people"
    shutil.copytree(ROOT / "reports" / "virtual-people", report)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    commit_all()
    return report.relative_to(tmp_path)


def made_anew(report: Path) -> None:
    """Commit the report as one of the code at hand."""
    (report / reproduced.FILE).write_text(json.dumps(provenance.record()))
    provenance.seal(report)
    commit_all()


def test_the_committed_report_comes_from_the_committed_files(repository):
    assert provenance.check(repository) == []


def test_what_differs_is_named(repository, capsys):
    (repository / reproduced.FILE).write_text(json.dumps(provenance.record()))
    density = Path("cid/density.py").read_text()
    Path("cid/density.py").write_text(f"# a comment\n{density}")
    assert provenance.check(repository) == []
    Path("cid/density.py").write_text("another = 1\n")
    Path("people/person.py").write_text("# no stage of a study uses it\n")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text("# a comment\n" + text)
    assert provenance.check(repository) == ["cid/density.py: edited since, or new, or gone"]
    Path("params.yaml").write_text(text.replace("tau: auto", "tau: 0.02", 1))
    parameters, code = provenance.check(repository)
    assert parameters.startswith("parameters: ") and code.startswith("cid/density.py")
    assert cli.main(["provenance", "check"]) == 1 and "cid/density.py" in capsys.readouterr().out
    (repository / reproduced.FILE).unlink()
    assert cli.main(["provenance", "check"]) == 1
    assert "run `dvc repro`, which writes it" in capsys.readouterr().err


def test_code_that_was_edited_after_its_stage_ran_is_recorded_as_it_ran(repository):
    executed = {"code": {"cid/density.py": "0" * 16}}
    Path("build/notebooks").mkdir(parents=True)
    Path("build/notebooks/weights.ipynb").write_text(json.dumps({"metadata": executed}))
    (repository / reproduced.FILE).write_text(json.dumps(provenance.record()))
    assert provenance.check(repository) == ["cid/density.py: edited since, or new, or gone"]


def test_the_record_names_the_commit_and_whether_it_was_edited(repository):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert provenance.record()["commit"] == commit.strip()
    Path("README.md").write_text("not of the study\n")
    assert provenance.record()["commit"] == commit.strip()
    with open("cid/density.py", "a") as file:
        file.write("# edited\n")
    assert provenance.record()["commit"] == commit.strip() + " with edits"
    shutil.rmtree(".git")
    assert provenance.record()["commit"] is None


def executed(stage: str, **received) -> None:
    """An executed notebook of a stage that received these parameters."""
    source = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in received.items())
    cell = {"metadata": {"tags": ["injected-parameters"]}, "source": [source]}
    Path("build/notebooks").mkdir(parents=True, exist_ok=True)
    notebook = {"metadata": {}, "cells": [cell]}
    Path(f"build/notebooks/{stage}.ipynb").write_text(json.dumps(notebook))


def test_parameters_that_a_stage_did_not_run_with_are_named(repository, capsys):
    """As after `dvc exp save`, or an edit while a stage ran: dvc.lock then holds what is in the file now."""
    now = {name: params.read()[name] for name in ("task", "seeds", "methods", "bias")}
    weights = params.read()["weights"]
    del weights["tau"]  # as if it had come since, at its default
    executed("weights", **now, weights=weights)
    made_anew(repository)
    assert provenance.check(repository) == []
    executed("weights", **now | {"seeds": 3})
    line = "parameters: weights ran with another value of seeds"
    assert provenance.check(repository) == [line]
    assert provenance.record()["edited"] == {"weights": ["seeds"]}
    assert cli.main(["provenance", "verify"]) == 1
    said = capsys.readouterr().out
    assert f"{repository} is not what is here: {line}; run it (`dvc repro`" in said
    assert "`dvc repro --force` makes them anew" in said and "Reproduced" not in said
    assert cli.main(["report", "headline"]) == 1
    said = capsys.readouterr().out
    assert line in said and "Reproduced" not in said


def test_an_edited_number_and_a_missing_page_are_named(repository, capsys):
    def edit() -> list[str]:
        area = repository / "area.csv"
        area.write_text(area.read_text().replace("0.", "1.", 1))
        (repository / "index.html").unlink()
        return provenance.check(repository)

    made_anew(repository)
    assert provenance.check(repository) == []
    assert edit() == [
        f"{repository}/area.csv: edited since the report was written",
        f"{repository}/index.html: missing",
    ]
    (repository / "more.csv").touch()
    assert provenance.check(repository)[-1] == f"{repository}/more.csv: not of this report"
    assert cli.main(["provenance", "check"]) == 1 and cli.main(["provenance", "verify"]) == 1
    assert "Reproduced" not in capsys.readouterr().out
    (repository / "more.csv").rename(repository / "notes.txt")  # which is somebody's own
    assert not any("notes.txt" in line for line in provenance.check(repository))
    (repository / "notes.txt").unlink()
    made = json.loads((repository / reproduced.FILE).read_text())
    del made["files"]  # of a report from before its record held them: as committed
    (repository / reproduced.FILE).write_text(json.dumps(made))
    subprocess.run(["git", "checkout", "-q", f"{repository}/area.csv"], check=True)
    subprocess.run(["git", "checkout", "-q", f"{repository}/index.html"], check=True)
    assert provenance.check(repository) == []
    assert edit() == [
        f"{repository}/{name}: not as it was committed" for name in ("area.csv", "index.html")
    ]


def test_data_that_were_edited_are_named(repository, monkeypatch):
    made_anew(repository)
    for name in (".dvc", "data"):
        Path(name).mkdir()
    for said, lines in (("{}", []), ('{"data.dvc": []}', ["data: edited since `dvc add data`"])):
        printing(monkeypatch, f"echo '{said}'", "dvc")
        assert provenance.check(repository) == lines
    printing(monkeypatch, "exit 1", "dvc")  # it is busy, say
    assert provenance.check(repository) == []


def printing(monkeypatch, program: str, name: str) -> None:
    """Put a program of our own in the place of another."""
    places = Path("programs").resolve()
    places.mkdir(exist_ok=True)
    (places / name).write_text(f"#!/bin/sh\n{program}\n")
    (places / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{places}:{os.environ['PATH']}")


def test_a_shallow_clone_invents_no_commit(repository, tmp_path_factory, monkeypatch):
    Path("studies").mkdir()
    shutil.copy("params.yaml", "studies/virtual-people.yaml")
    commit_all()
    for file in ("README.md", "LICENSE"):
        Path(file).write_text("later\n")
        commit_all()
    known = provenance.record()["protocol"]
    clone = tmp_path_factory.mktemp("shallow") / "clone"
    origin = f"file://{Path.cwd()}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", origin, str(clone)], check=True)
    monkeypatch.chdir(clone)
    assert known["commit"] and provenance.record()["protocol"]["commit"] is None
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert provenance.record()["commit"] == head.strip()
    assert protocols.update()[0].startswith(
        "virtual-people: not committed as it stands, or the history"
    )


def test_a_kept_study_is_looked_at_in_its_workspace(repository):
    made_anew(repository)
    folder = repository.with_name("other")
    shutil.copytree(repository, folder)
    place = Path("build/studies/other")
    (place / "build/notebooks").mkdir(parents=True)
    text = Path("params.yaml").read_text()
    (place / "params.yaml").write_text(text)
    shutil.copy("dvc.lock", place)
    assert provenance.check(folder) == []
    (place / "params.yaml").write_text(text.replace("seeds: 20", "seeds: 3", 1))
    assert provenance.check(folder)[0].startswith("parameters: ")


def test_main_numbers_have_one_path_for_all_studies(repository):
    run = ROOT / "reports" / "cnn-45"
    publish.write_latest(run)
    numbers = json.loads(Path("latest/metrics.json").read_text())
    assert len(numbers) <= 12 and all(isinstance(value, float) for value in numbers.values())
    area = pd.read_csv(run / "difference.csv")
    found = area.query("test == 'seen' and metric == 'accuracy' and method == 'oracle'")
    last = found.sort_values("level")["mean"].iloc[-1]
    assert numbers["oracle"] == pytest.approx(100 * last)
    publish.write_latest(repository)
    assert sorted(path.name for path in Path("latest").iterdir()) == [
        "against-bias-seen.svg", "gain-seen.svg", "metrics.json"
    ]  # fmt: skip


def test_all_code_and_templates_are_of_the_record(repository):
    files = set(provenance.made_of()["code"])
    assert {
        "cid/density.py", "study/results/tables.py", "study/pipeline/templates/study.html.j2",
        "notebooks/compute/weights.ipynb", "notebooks/paper/00_abstract.ipynb",
    } <= files  # fmt: skip


def test_the_same_numbers_are_reproduced_and_others_are_not(repository, capsys):
    made_anew(repository)
    assert cli.main(["provenance", "verify"]) == 0
    assert re.fullmatch(r"Reproduced: \d+ files identical to the byte\.\n", capsys.readouterr().out)

    def shift(part, rows=1):
        """Move means by a part of half their intervals, further than the last call."""
        table = pd.read_csv(repository / "summary.csv")
        table.loc[: rows - 1, "mean"] += part * (table["high"] - table["low"]) / 2
        table.to_csv(repository / "summary.csv", index=False)
        return reproduced.verify(repository)

    found = shift(0.05)
    assert found.lines == ["summary.csv: means move by at most 0.05 of half their interval"]
    assert found.within and found.sentence == (
        "Reproduced: means moved by at most 0.05 of half their interval."
    )
    found = shift(0.25)  # a near tie that fell otherwise
    assert found.within and re.fullmatch(
        r"Reproduced except for near ties, as on another kind of processor: 1 of [\d,]+ means moved by more"
        rf" than {MOVES:g} of half their interval, most of all seen accuracy 0.0 erm in summary.csv, by"
        r" 0.3; every verdict is the same\.",
        found.sentence,
    )
    found = shift(1)  # out of its interval
    assert not found.within and found.sentence.startswith("Not reproduced: 1 of ")
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    before = pd.DataFrame({"method": ["cid"], "mean": 0.0, "low": 0.0, "high": 0.0})
    texts = [before.assign(mean=mean).to_csv(index=False) for mean in (0.0, 0.0001, 0.01)]
    moved = [reproduced.compare("a.csv", texts[0], text).moved.item() for text in texts]
    assert moved[0] == 0 and moved[1] < 1 < moved[2]  # an image of ten thousand; a hundred of them
    found = shift(0.4, rows=10**6)  # all of them, so no tie
    assert not found.within and re.match(r"Not reproduced: ([\d,]+) of \1 means", found.sentence)
    pd.read_csv(repository / "summary.csv")[:-1].to_csv(repository / "summary.csv", index=False)
    found = reproduced.verify(repository)
    assert found.sentence == "Not reproduced: summary.csv: other rows or columns."
    (repository / "claims.json").unlink()
    found = reproduced.verify(repository)
    assert found.lines[0] == "claims.json: missing here" and not found.within
    assert found.sentence == "Not reproduced: claims.json: missing here, and 1 more."
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    entries = json.loads((repository / "claims.json").read_text())
    entries[-1]["verdict"] = "turned around"
    (repository / "claims.json").write_text(json.dumps(entries))
    found = reproduced.verify(repository)
    assert found.lines == ["claims.json: 1 other verdicts"] and not found.within
    entries[-1]["border"] = ["supported"]  # which it was before: another processor foresaw that
    (repository / "claims.json").write_text(json.dumps(entries))
    assert reproduced.verify(repository).within
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    assert cli.main(["provenance", "verify", "--commit", "nowhere"]) == 1
    assert "nowhere holds no numbers" in capsys.readouterr().err


def test_a_record_names_the_protocol_and_when_it_was_fixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    made = provenance.record()  # without a repository
    assert made["protocol"] == {"status": "exploratory", "commit": None, "date": None}
    assert made["commit"] is None and made["date"] is None
    (tmp_path / "studies").mkdir()
    shutil.copy(ROOT / "params.yaml", "studies/virtual-people.yaml")
    shutil.copy(ROOT / "studies" / "base-1.yaml", "studies")
    dates = ["2026-01-02T03:04:05+00:00", "2026-02-03T04:05:06+00:00"]
    subprocess.run(["git", "init", "-q"], check=True)
    for date in dates:  # the later commit holds the same protocol, and other packages
        monkeypatch.setenv("GIT_COMMITTER_DATE", date)
        commit_all()
        with open("requirements.lock", "a") as file:
            file.write("# more\n")
    commits = subprocess.run(["git", "log", "--format=%H"], capture_output=True, text=True)
    last, first = commits.stdout.split()
    subprocess.run(["git", "checkout", "-q", "."], check=True)
    made = provenance.record()
    assert made["protocol"] == {"status": "exploratory", "commit": first, "date": dates[0]}
    assert (made["commit"], made["date"]) == (last, dates[1])
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("status: exploratory", "status: confirmatory", 1))
    made = provenance.record()  # of another content, which was never committed
    assert made["protocol"] == {"status": "confirmatory", "commit": None, "date": None}


def test_a_record_names_the_protocol_of_the_table_without_a_history(repository):
    shutil.copytree(ROOT / "studies", "studies")
    shutil.rmtree(".git")
    row = protocols.of_study("virtual-people", protocols.read())[-1]
    expected = {"status": "exploratory", "commit": row.commit, "date": row.date}
    assert provenance.record()["protocol"] == expected


def test_the_report_of_any_study_is_verified_by_name(repository, capsys):
    made_anew(repository)
    shutil.copytree(repository, repository.with_name("other"))
    assert cli.main(["provenance", "verify", "other"]) == 1
    assert "HEAD holds no numbers in reports/other" in capsys.readouterr().err
    commit_all()
    assert cli.main(["provenance", "verify", "other"]) == 0
    assert "identical to the byte" in capsys.readouterr().out
    (repository.with_name("other") / "area.csv").unlink()
    assert cli.main(["provenance", "verify", "other"]) == 1
    assert "other/area.csv: " in capsys.readouterr().out
    assert cli.main(["provenance", "verify"]) == 0
    assert cli.main(["provenance", "verify", "othr"]) == 1
    error = capsys.readouterr().err
    assert "reports/othr holds no report (did you mean 'other'?); there are other, virt" in error


@pytest.fixture
def run(repository):
    """A new run of the committed report, in build/report, with another number of processors."""
    shutil.copytree(repository, reproduced.RUN)
    edit_record(reproduced.RUN, processors=99, stages="of other last digits")
    return reproduced.RUN


def edit_record(folder: Path, **changes) -> None:
    file = folder / reproduced.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def move_means(folder: Path, part: float) -> None:
    """Move every mean of the summary by a part of half its interval."""
    table = pd.read_csv(folder / "summary.csv")
    table["mean"] += part * (table["high"] - table["low"]) / 2
    table.to_csv(folder / "summary.csv", index=False)


def is_clean() -> bool:
    done = subprocess.run(["git", "status", "--porcelain", "reports"], capture_output=True)
    return done.stdout == b""


def test_main_numbers_that_were_edited_are_named(repository):
    made_anew(repository)
    publish.write_latest(repository)
    assert provenance.check(repository) == []
    shown = publish.LATEST / "metrics.json"
    numbers = json.loads(shown.read_text())
    shown.write_text(json.dumps(numbers | {"erm": 99.0}))
    (line,) = provenance.check(repository)
    assert line.startswith(f"{shown}: not the numbers of this report")


@pytest.mark.parametrize(
    "part, sentence",
    [
        (0.0, r"Reproduced: \d+ files identical to the byte\."),
        (0.05, r"Reproduced: means moved by at most 0.05 of half their interval\."),
    ],
)
def test_a_committed_report_stays_where_only_rounding_moved(
    repository, run, capsys, part, sentence
):
    if part:
        move_means(run, part)
    publish.publish()
    said = f"{repository} stays as it was committed; this run is in {run}. "
    others = "" if part else r" Files without numbers differ: .*provenance\.json\."
    assert re.fullmatch(re.escape(said) + sentence + others + "\n", capsys.readouterr().out)
    assert is_clean()
    assert re.fullmatch(sentence, reproduced.verify(repository).sentence)  # of the run


def test_a_committed_report_stays_where_figures_alone_differ_and_they_are_named(
    repository, run, capsys
):
    shutil.copytree(repository, run, dirs_exist_ok=True)
    (run / "figures").mkdir(exist_ok=True)
    for name in ("a", "b", "c", "d"):
        (run / f"figures/{name}.svg").write_text("<svg/>")
    publish.publish()
    named = "figures/a.svg, figures/b.svg, figures/c.svg, ..."
    assert f" Files without numbers differ: {named}." in capsys.readouterr().out
    assert is_clean()


@pytest.mark.parametrize("what", ["verdict", "means", "code", "edits", "changed"])
def test_a_report_of_other_results_or_of_other_code_is_published(repository, run, capsys, what):
    if what == "verdict":
        entries = json.loads((run / "claims.json").read_text())
        entries[0]["verdict"] = "turned around"
        (run / "claims.json").write_text(json.dumps(entries))
    elif what == "means":
        move_means(run, 2.0)
    elif what == "code":
        edit_record(run, code={})
    elif what == "edits":  # the committed report is of code that was not committed
        edit_record(repository, commit="0" * 40 + " with edits")
        commit_all()
    else:
        (repository / "area.csv").write_text("edited by hand\n")
    publish.publish()
    assert capsys.readouterr().out == "" and not is_clean()
    for name in ("summary.csv", "claims.json", reproduced.FILE):
        assert (repository / name).read_bytes() == (run / name).read_bytes()
