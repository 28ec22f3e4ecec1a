"""The report of a study, from hand-made outputs of the stages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from study import cli
from study.pipeline import (
    earlier,
    findings,
    overview,
    params,
    protocols,
    provenance,
    publish,
    report,
    reproduced,
)
from study.results.inference import holm
from tests.study.pipeline.test_pages import PNG, Tags, figure, put, shown

ROOT = Path(__file__).parents[3]
KEEP = ("summary", "difference", "area", "power")


def fill(folder: Path) -> None:
    """What the stages before the report leave, of a study of two sections."""
    for name in (
        "params.yaml",
        "dvc.yaml",
        "dvc.lock",
        "data.dvc",
        "requirements.lock",
        "README.md",
    ):
        shutil.copy(ROOT / name, folder)
    for part in ("data", "evaluate", "factors", "proxies", "breadth", "ablate", "paper/figures"):
        (folder / "build" / part).mkdir(parents=True)
    kept = ROOT / "reports" / "virtual-people"
    for name in KEEP:
        shutil.copy(kept / f"{name}.csv", folder / "build" / "evaluate")
        shutil.copy(kept / "area.csv", folder / "build" / "breadth")
    for name in ("claims", "about"):
        shutil.copy(kept / f"{name}.json", folder / "build" / "evaluate")
    card = {
        "name": "faces <of> people", "source": "s", "licence": "l",
        "counts": {"images": 4800, "identities": 100},
    }  # fmt: skip
    (folder / "build/data/card.json").write_text(json.dumps(card))
    for name in ("main", "second"):
        (folder / f"build/paper/figures/{name}.svg").write_text(
            "<svg xmlns='http://www.w3.org/2000/svg'/>"
        )
    put(
        folder / "build/paper/00_abstract.ipynb",
        "# Do they *care*?\n\nLong prose.",
        [shown({"text/markdown": "CID **gains**."})],
        "## Verdicts\n\nBy rules.",
        [shown({"text/markdown": "| claim | verdict |\n|---|---|\n| 1 | supported |\n"})],
        figure("main"),
        "## The numbers",
    )
    put(folder / "build/paper/01_data.ipynb", "# 1. Data & people", figure("second"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return params.read()


def test_the_first_screen_shows_what_was_found(study):
    text = report.build(study).read_text()
    order = ['<a href="../index.html">All studies</a>', "<h1>Do they <em>care</em>?</h1>", "CID <strong>gains</strong>.", "Verdicts", "supported",
             "figures/main.svg", "Contents", "Abstract</h2>", "Long prose.", "The numbers",
             "<h2>1. Data &amp; people</h2>", "figures/second.svg", "What this page was made of</h2>"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "<title>virtual-people: Do they care?</title>" in text
    assert "secret()" not in text, "code is not shown"


def test_figures_are_numbered_files_with_words_for_those_who_do_not_see_them(study):
    text = report.build(study).read_text()
    images = [a for tag, a in Tags(text).found if tag == "img"]
    assert images == [{"src": f"figures/{n}.svg", "alt": "A <chart>"} for n in ("main", "second")]
    assert re.findall(r"<figcaption><b>(Figure \d\.)</b> What <em>to</em> see", text) == [
        "Figure 1.", "Figure 2."
    ]  # fmt: skip
    for tag, attributes in Tags(text).found:
        assert tag not in ("script", "iframe") and not [
            name for name in attributes if name[:2] == "on"
        ]
        link = attributes.get("href", "#")
        if not link.startswith(("#", "data:", "../index.html")):
            assert (reproduced.RUN / link).is_file(), link
    targets = {a["id"] for _, a in Tags(text).found if "id" in a}
    contents = [a["href"][1:] for tag, a in Tags(text).found if a.get("href", "")[:1] == "#"]
    assert (
        contents == ["do-they-em-care-em", "1-data-people", "made-of"] and set(contents) <= targets
    )


def test_the_front_says_what_was_fixed_beforehand(study, monkeypatch):
    assert (
        "Exploratory: no protocol was committed before results on these people were known. The design"
        in report.build(study).read_text()
    )
    study["protocol"] = {
        "status": "confirmatory", "note": "nothing was known.",
        "detectable": {"accuracy": 0.4, "minority_accuracy": 0.8},
    }  # fmt: skip
    Path("studies").mkdir()
    for file in (Path("params.yaml"), Path("studies/virtual-people.yaml")):
        YAML().dump(study, file)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-02T03:04:05+00:00")
    for command in (["init", "-q"], ["add", "studies"], [*identity, "commit", "-qm", "protocol"]):
        subprocess.run(["git", *command], check=True)
    text = report.build(study).read_text()
    fixed = json.loads((reproduced.RUN / "provenance.json").read_text())["protocol"]["commit"]
    assert "Exploratory" not in text
    assert f"committed before the first run ({fixed[:7]}, 2026-01-02 03:04)" in text
    assert "Nothing was known." in text
    assert "in points: accuracy 0.40 predicted, " in text and " found; accuracy on minority" in text


def kept_verdicts(change: float = 0.0) -> None:
    """Keep what the report of the study at hand says, with ERM's accuracy moved."""
    Path("studies").mkdir(exist_ok=True)
    entries = json.loads(Path("build/evaluate/claims.json").read_text())
    area = pd.read_csv("build/evaluate/area.csv")
    rows = earlier.of_report("virtual-people", entries, area, commit="0123456789ab")
    at = next(i for i, row in enumerate(rows) if row.method == "erm")
    rows[at] = rows[at]._replace(estimate=rows[at].estimate + change)
    lines = [",".join(earlier.Row._fields)]
    lines += [",".join(f'"{"" if v != v else v}"' for v in row) for row in rows]
    earlier.TABLE.write_text("\n".join(lines) + "\n")


RERUN = {
    "status": "rerun", "commit": "a" * 40, "date": "2026-01-02T03:04:05Z",
    "again": {"commit": "b" * 40, "date": "2026-02-02T03:04:05Z", "settings": "train.l2: 0.1, now auto"},
}  # fmt: skip


def test_the_page_of_a_rerun_shows_both_runs(study, monkeypatch):
    kept_verdicts()
    monkeypatch.setattr(provenance, "_protocol", lambda params: RERUN)
    text = report.build(study).read_text()
    assert (
        "Run again: confirmatory under its protocol of 2026-01-02 03:04 (aaaaaaa), with other"
        in text
    )
    assert "Confirmatory:" not in text and "Exploratory" not in text
    section = text[text.index('<section id="before">') :]
    section = section[: section.index("</section>")]
    assert "The settings that differ: train.l2: 0.1, now auto." in section
    assert "is in commit 0123456789ab" in section and '<a href="#before">' in text
    rows = [re.sub("<[^>]+>", " ", row).split() for row in section.split("<tr>")[2:]]
    assert ["seen", "accuracy", "ERM"] == rows[0][:3]
    assert [row[2] for row in rows[:4]] == ["ERM", "CID", "Label", "Oracle"]
    assert all(row.count("supported") in (0, 2) for row in rows if "not" not in row)


def test_an_exploratory_study_shows_what_moved_and_else_nothing(study):
    assert 'id="before"' not in report.build(study).read_text()  # nothing was kept
    kept_verdicts()
    assert 'id="before"' not in report.build(study).read_text()  # nothing moved
    kept_verdicts(0.01)
    text = report.build(study).read_text()
    assert 'id="before"' in text and "Exploratory then and now." in text


def test_the_overview_tells_every_state_apart(study):
    report.build(study)
    publish.publish()
    write_costs()
    assert "before and after" not in overview.results_page(study)
    shutil.copytree("reports/virtual-people", "reports/again")
    file = Path("reports/again/provenance.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"protocol": RERUN}))
    kept_verdicts()
    table = earlier.TABLE.read_text()
    earlier.TABLE.write_text(table + table.partition("\n")[2].replace("virtual-people", "again"))
    rows = [
        protocols.Row("again", "confirmatory", "c" * 16, "a" * 40, RERUN["date"]),
        protocols.Row(
            "again", "rerun", "d" * 16, "b" * 40, RERUN["date"], "train.l2: 0.1, now auto"
        ),
        protocols.Row("never", "withdrawn", "e" * 16, "a" * 40, RERUN["date"], "other people"),
    ]
    protocols._write(rows)
    results = overview.results_page(study)
    assert "| run again; confirmatory before, aaaaaaa of 2026-01-02 |" in results
    assert "| again | rerun | bbbbbbb of 2026-01-02 | train.l2: 0.1, now auto |" in results
    assert "| never | withdrawn | aaaaaaa of 2026-01-02 | other people |" in results
    compared = results[results.index("## Run again: before and after") :]
    assert "| again | accuracy |" in compared and "| virtual-people | accuracy |" not in compared
    text = overview.studies_page().read_text()
    assert text.index("Run again: confirmatory") < text.index("again/index.html")
    assert text.index("again/index.html") < text.index(overview.EXPLORATORY)


def test_the_verdicts_of_a_commit_are_kept_as_its_reports_say_them(study, capsys):
    report.build(study)
    publish.publish()
    Path("studies").mkdir()
    for command in (["init", "-q"], ["add", "reports"]):
        subprocess.run(["git", *command], check=True)
    assert cli.main(["earlier", "HEAD"]) == 1 and "no commit HEAD" in capsys.readouterr().err
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, "commit", "-qm", "all"], check=True)
    assert cli.main(["earlier", "HEAD"]) == 0
    rows = earlier.read()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert {(row.study, row.commit) for row in rows} == {("virtual-people", commit[:12])}
    entries = json.loads((ROOT / "reports/virtual-people/claims.json").read_text())
    stated = {(e["claim"], e["test"], e["metric"], e["method"]): e for e in entries if e["metric"]}
    found = {(r.claim, r.population, r.endpoint, r.method): r for r in rows if r.claim}
    assert found.keys() == stated.keys()
    for key, row in found.items():
        assert row.verdict == stated[key]["verdict"]
        for name, column in (("effect", "estimate"), ("low", "low"), ("high", "high"), ("p", "p")):
            value = getattr(row, column)
            assert (None if value != value else value) == stated[key][name], (key, name)
    (erm,) = [
        r for r in rows if (r.method, r.population, r.endpoint) == ("erm", "seen", "accuracy")
    ]
    area = pd.read_csv("reports/virtual-people/area.csv").query("test == 'seen'")
    assert erm.estimate == area.query("metric == 'accuracy' and method == 'erm'")["mean"].item()
    assert not erm.reference and not erm.verdict
    before = earlier.TABLE.read_text()
    assert cli.main(["earlier", "HEAD"]) == 0 and earlier.TABLE.read_text() == before
    subprocess.run(["git", "rm", "-rq", "reports"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "none"], check=True)
    assert cli.main(["earlier", "HEAD"]) == 1 and "holds no report" in capsys.readouterr().err


def test_the_page_names_what_it_was_made_of(study):
    text = report.build(study).read_text()
    made = json.loads((reproduced.RUN / "provenance.json").read_text())
    rows = dict(re.findall(r"<tr><th>([^<]+)</th><td>(.*)</td></tr>", text))
    assert list(rows) == ["commit", "data", "parameters", "packages", "stages", "code files"]
    assert rows["commit"] == "not in a repository" and made["commit"] is None
    for name in ("data", "parameters", "packages", "stages"):
        assert rows[name].startswith(made[name])
    assert f"numpy {made['versions']['numpy']}" in rows["packages"]
    assert rows["code files"].startswith(f"{len(made['code'])}, each with its digest")
    assert all(f"{digest}  {file}\n" in text for file, digest in made["code"].items())
    assert "faces &lt;of&gt; people, 4,800 images of 100 people" in rows["data"]


def test_the_folder_holds_all_numbers_notebooks_and_where_they_come_from(study):
    report.build(study)
    names = {
        str(path.relative_to(reproduced.RUN))
        for path in reproduced.RUN.rglob("*")
        if path.is_file()
    }
    assert names == {
        "index.html", "claims.json", "about.json", "card.json", "params.yaml", "provenance.json", "breadth-area.csv",
        "figures/main.svg", "figures/second.svg", "notebooks/00_abstract.ipynb",
        "notebooks/01_data.ipynb", *(f"{name}.csv" for name in KEEP),
    }  # fmt: skip
    entries = json.loads((reproduced.RUN / "claims.json").read_text())
    committed = json.loads((ROOT / "reports/virtual-people/claims.json").read_text())
    keys = ("task", "kind", "claim", "method", "test", "metric")
    assert len({tuple(e[k] for k in keys) for e in entries}) == len(entries) == len(committed)


def test_the_parameters_of_a_report_hold_every_setting_with_the_comments_of_the_file(study):
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    page = report.build(study).read_text()
    file = reproduced.RUN / "params.yaml"
    assert params.load("params.yaml") != params.load(file) == params.read("params.yaml")
    text = file.read_text()
    assert "\n  temper: 1.25\n" in text and "\n    jtt_upweight: 2.0\n" in text
    assert "\n  jtt_upweight" not in text and "jtt_upweight: 2.0" in page
    written = [
        line for line in Path("params.yaml").read_text().splitlines() if "robust:" not in line
    ]
    assert [line for line in text.splitlines() if line in written] == written
    Path("params.yaml").write_text(text)
    report.build(study)
    assert file.read_text() == text


def test_two_builds_give_the_same_bytes(study):
    before = report.build(study).read_bytes()
    assert report.build(study).read_bytes() == before


def test_photographs_that_must_not_be_shown_are_refused(study):
    card = json.loads(Path("build/data/card.json").read_text()) | {"show_images": False}
    Path("build/data/card.json").write_text(json.dumps(card))
    report.build(study)
    Path("build/paper/figures/idea.jpg").touch()
    with pytest.raises(ValueError, match="idea.jpg shows images of faces"):
        report.build(study)
    Path("build/paper/figures/idea.jpg").unlink()
    Path("build/paper/figures/idea.svg").write_text(
        "<svg><image href='data:image/jpeg;base64,'/></svg>"
    )
    with pytest.raises(ValueError, match="idea.svg shows images of faces"):
        report.build(study)
    Path("build/paper/figures/idea.svg").unlink()
    put(Path("build/paper/01_data.ipynb"), "# 1. Data", [shown({"image/jpeg": PNG})])
    with pytest.raises(ValueError, match="01_data.ipynb shows images of faces"):
        report.build(study)


def test_a_report_is_published_in_its_own_folder_only(study):
    report.build(study)
    Path("reports/other").mkdir(parents=True)
    Path("reports/other/keep.txt").touch()
    gone = reproduced.RUN / "of-the-last-one.csv"
    gone.touch()
    provenance.seal(reproduced.RUN)
    assert publish.publish() == Path("reports/virtual-people/index.html")
    gone.unlink()
    provenance.seal(reproduced.RUN)
    there = Path("reports/virtual-people")
    (there / "mine").mkdir()
    (there / "mine/notes.md").write_text("look at person 3 again")
    publish.publish()
    assert (there / "mine/notes.md").read_text() == "look at person 3 again"
    shutil.rmtree(there / "mine")
    files = {p.relative_to(reproduced.RUN) for p in reproduced.RUN.rglob("*")}
    assert {p.relative_to(there) for p in there.rglob("*")} == files
    assert sorted(p.name for p in Path("reports").iterdir()) == ["other", "virtual-people"]
    assert Path("reports/other/keep.txt").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "other", "link"])
def test_nothing_but_a_report_is_replaced(study, name):
    report.build(study)
    Path("reports/other").mkdir(parents=True)
    Path("reports/other/keep.txt").touch()
    Path("reports/link").symlink_to("other")
    settings = reproduced.RUN / "params.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("study: virtual-people", f"study: {name}"))
    with pytest.raises(ValueError, match="is not a folder in reports|is no report"):
        publish.publish()
    assert Path("reports/other/keep.txt").exists() and Path("README.md").exists()


def write_costs() -> None:
    Path("benchmarks").mkdir()
    costs = 'study,method,images,"weights, s","head, s",ratio\nvirtual-people,cid,9,0.02,0.3,1\n'
    Path("benchmarks/costs.csv").write_text(costs)


def test_the_readme_has_a_short_table_and_the_results_page_all_of_them(study):
    report.build(study)
    publish.publish()
    begin, end = (mark.format("headline") for mark in findings.MARKS)
    Path("README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    write_costs()
    assert cli.main(["documents"]) == 0
    text = Path("README.md").read_text()
    assert text.startswith(f"before\n{begin}\n| bias |") and text.endswith(f"\n{end}\nafter\n")
    assert findings.documents(study) == {Path("README.md"): text}
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert {len(cells) for cells in table} == {4} and "old" not in text
    interval = r".\d+\.\d+ \[.*?\]"
    assert re.search(
        rf"\| 0\.9 \| [\d.]+ % \([\d.]+ %\)( \| {interval} \({interval}\)){{2}} \|", text
    )

    results = Path("docs/results.md").read_text()
    assert overview.results_page(study) == results
    for target in ("notebooks/00_abstract.ipynb", "index.html"):
        assert f"(../reports/virtual-people/{target})" in results
    assert "| exploratory |" in results and "smiling, correlation 0 to 0.9 |" in results
    assert re.search(r"\| CID \| class \| .\d\.\d+ \[.*\] \| 0\.32 \|", results)
    assert re.search(r"\| JTT \| none \| .*– \|", results)
    assert "virtual-people: accuracy − ERM |\n" not in results  # its heads are linear
    about = Path("reports/virtual-people/about.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"model": "cnn"}))
    results = overview.results_page(study)
    assert re.search(r"\| CID \| class \| .\d\.\d+ \[.*\] \(\d\.\d\) \|", results)

    Path("README.md").write_text("no marks")
    with pytest.raises(ValueError, match="README.md lacks"):
        findings.documents(study)


def test_a_confirmatory_study_says_when_its_protocol_was_committed(study):
    report.build(study)
    publish.publish()
    write_costs()
    file = Path("reports/virtual-people/provenance.json")
    made = json.loads(file.read_text())
    protocol = {"status": "confirmatory", "commit": "a" * 40, "date": "2026-01-02T03:04:05Z"}
    file.write_text(json.dumps(made | {"protocol": protocol}))
    assert "| confirmatory, aaaaaaa of 2026-01-02 |" in overview.results_page(study)
    file.write_text(json.dumps(made | {"protocol": protocol | {"commit": None}}))
    assert "| confirmatory, not committed |" in overview.results_page(study)


def test_gains_are_corrected_over_all_confirmatory_studies(study):
    report.build(study)
    publish.publish()
    file = Path("reports/virtual-people/provenance.json")
    made = json.loads(file.read_text())
    made["protocol"] = {"status": "confirmatory", "commit": None, "date": None}
    file.write_text(json.dumps(made))
    for name in ("b-study", "c-study"):
        shutil.copytree("reports/virtual-people", f"reports/{name}")
    studies = overview.read_studies()
    table = overview.over_studies(studies, "surprise")
    own = [
        entry for entry in studies[0].claims if entry["primary"] and entry["method"] == "surprise"
    ]
    assert len(table) == 3 * len(own)
    assert table["p_all"].tolist() == pytest.approx(holm([e["p"] for e in table["entry"]]))
    for row in table.itertuples():
        assert row.gains == (row.entry["p_holm"] < 0.05 and row.entry["effect"] > 0)
        assert row.keeps == (row.gains and row.p_all < 0.05)
    said = overview.families_sentences(studies)
    assert said[0].startswith(
        f"Label surprise (k-NN) has {table['gains'].sum()} gains clear of 0 among its {len(table)} primary "
        "endpoints in 3 studies"
    )
    assert said[1].startswith("CID, as published, has ")
    head, rows = overview.families_table(studies)
    assert {len(row) for row in rows} == {len(head)} and len(rows) == len(table)
    assert "All confirmatory studies together" in overview.studies_page().read_text()


@pytest.mark.parametrize("name", ["virtual-people", "lfw-mouth"])
def test_a_report_has_one_interval_and_p_value_of_what_is_judged(name):
    entries, tables = overview.tables_of(ROOT / "reports" / name)
    area = tables["area"].set_index(["test", "metric", "method"])
    judged = [entry for entry in entries if entry["primary"] and entry["p"] is not None]
    assert judged
    for entry in judged:
        row = area.loc[(entry["test"], entry["metric"], entry["method"])]
        for key, column in {
            "low": "low_difference",
            "high": "high_difference",
            "p_holm": "p_holm",
        }.items():
            assert row[column] == pytest.approx(entry[key], abs=6e-5)
        clear = entry["low"] > 0 or entry["high"] < 0
        assert clear == (entry["p_holm"] < 0.05) or entry["border"]


def test_every_verdict_that_moved_says_why():
    table = pd.read_csv(ROOT / "reports/verdicts.csv", keep_default_na=False)
    assert (table["reason"] != "").all()
    assert ((table["before"] != table["after"]) == (table["moved"] != "")).all()
    assert set(table["after"]) <= {
        "supported", "supported, size uncertain", "does harm", "no gain", "nothing to gain",
        "inconclusive", "not testable",
    }  # fmt: skip


def test_a_short_table_leaves_out_what_is_not_known(tmp_path):
    shutil.copytree(ROOT / "reports/virtual-people", tmp_path / "s")
    for name in ("difference", "summary"):
        file = tmp_path / "s" / f"{name}.csv"
        lines = file.read_text().splitlines()
        kept = [line for line in lines if ",oracle," not in line and "minority_acc" not in line]
        file.write_text("\n".join(kept) + "\n")
    _, rows = overview.short_headline(tmp_path / "s")
    assert rows[-1][0] == "0.9" and rows[-1][3] == "–"
    assert re.fullmatch(r"[\d.]+ %", rows[-1][1])


def test_all_studies_stand_on_one_axis_confirmatory_ones_first(study):
    report.build(study)
    publish.publish()
    first = Path("reports/a-study")
    shutil.copytree("reports/virtual-people", first)
    shutil.copytree("reports/virtual-people", "reports/z-study")
    file = Path("reports/z-study/provenance.json")
    made = json.loads(file.read_text())
    made["protocol"] = {"status": "confirmatory", "commit": None, "date": None}
    file.write_text(json.dumps(made))
    page = overview.studies_page()
    text = page.read_text()
    places = [
        text.index(f'<a href="{name}/index.html">')
        for name in ("z-study", "a-study", "virtual-people")
    ]
    assert places == sorted(places)
    assert text.index("Confirmatory") < places[0] < text.index("Exploratory") < places[1]
    assert "<title>All studies of CID and label surprise</title>" in text
    assert "faces &lt;of&gt; people" in text and "<h2>The numbers</h2>" in text
    assert text.count('class="panel"') == 2 * 3
    assert overview.studies_page().read_text() == text


def test_rendered_people_and_photographs_are_told_apart_by_the_data_card():
    kinds = {
        name: overview.kind_of_people(json.loads((ROOT / f"reports/{name}/card.json").read_text()))
        for name in ("virtual-people", "lfw-mouth")
    }
    assert kinds["virtual-people"] == "rendered people who do not exist"
    assert kinds["lfw-mouth"] == "photographs of real people"


def test_a_mark_of_the_forest_plot_stands_at_its_number(study):
    report.build(study)
    publish.publish()
    (one,) = overview.read_studies()
    axis = overview.make_axis([one], "accuracy")
    assert axis.ticks[0] <= 0 <= axis.ticks[-1] and 0.0 in axis.ticks
    for mark in overview.marks(one, axis):
        row = one.area.loc[("accuracy", mark.method)]
        share = (100 * row["mean_difference"] - axis.low) / (axis.high - axis.low)
        assert float(mark.at.rstrip("%")) == pytest.approx(100 * share, abs=0.01)
        assert (
            float(mark.low.rstrip("%")) < float(mark.at.rstrip("%")) < float(mark.high.rstrip("%"))
        )
    assert [mark.shape for mark in overview.marks(one, axis)] == ["o", "^", "s"]


def test_the_headline_ends_with_whether_it_is_reproduced(study, capsys):
    report.build(study)
    publish.publish()
    for command in (["init", "-q"], ["add", "reports"]):
        subprocess.run(["git", *command], check=True)
    assert cli.main(["report", "headline"]) == 0
    assert capsys.readouterr().out.endswith("no committed report of this study to compare with.\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, "commit", "-qm", "all"], check=True)
    assert cli.main(["report", "headline"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\nReproduced: \d files identical to the byte\.\n$", said)
    assert "| 0.9 |" in said and str(Path("reports/virtual-people/index.html").resolve()) in said


def test_what_is_missing_is_said(study, capsys):
    shutil.rmtree("build/paper")
    assert cli.main(["report", "build"]) == 1
    assert "build/paper holds no sections; run `dvc repro`" in capsys.readouterr().err
