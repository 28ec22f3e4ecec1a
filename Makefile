# `make reproduce` and `make test` may be run in either order; each sets up what it needs, once.
PYTHON ?= python3
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

.PHONY: reproduce test bench data people clean-notebooks

reproduce: $(VENV)/.study data   ## run the study, or what of it is out of date
	dvc repro
	python -m cid.report headline

test: $(VENV)/.test data         ## run all tests
	python -m pytest

bench: $(VENV)/.bench data       ## measure every speed side by side; writes benchmarks/
	dvc repro embed
	python benchmarks/run.py

data: $(VENV)/.study             ## fetch the data set from the remote inside the repository
	@test -e data.dvc && dvc pull --quiet data.dvc

people: $(VENV)/.test            ## render the virtual people anew; then `dvc add data && dvc push`
	python -m cid.people data --seed 0

clean-notebooks: $(VENV)/.study  ## strip outputs from the source notebooks before a commit
	python -m cid.notebook clean notebooks/*.ipynb

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: run 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.study: $(VENV)/bin/python pyproject.toml requirements.lock
	@echo "Installing pinned packages into $(VENV): a few minutes, some 6 GB (the Linux build of torch carries CUDA)."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.study
	$(INSTALL) -e '.[people,test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.study
	$(INSTALL) -e '.[bench]'
	@touch $@
