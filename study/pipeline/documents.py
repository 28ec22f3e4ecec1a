"""Fill the documents with the numbers of all reports: README.md, docs/findings.md and docs/results.md.

    python -m study documents        the same after a report has been committed, and reports/index.html

It is no part of a report: what these documents say can change and leave every report valid.
"""

from study.commands import parser
from study.pipeline import findings, overview
from study.pipeline.overview import RESULTS
from study.pipeline.params import read
from study.store import write_text


def main(arguments: list[str]) -> None:
    parser("documents").parse_args(arguments)
    params = read()
    studies = overview.read_studies()
    for path, text in findings.documents(params, studies).items():
        write_text(path, text)
    write_text(RESULTS, overview.results_page(params, studies))
    print(overview.studies_page(studies))
