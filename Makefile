# `make reproduce` and `make test` may be run in either order; each sets up what it needs, once.
PYTHON ?= python3
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
INSTALL = $(PIP) -c requirements.lock
# The address of a package index with builds of torch for processors alone, which pytorch.org names: 1.8 GB
# to install in place of 6.6. Hashes are then not checked.
TORCH ?=

.PHONY: reproduce test study html bench lab cost check verify kills data people networks rehearse celeba clean-notebooks

reproduce: $(VENV)/.study data   ## run the study, or what of it is out of date
	python -m study run
	python -m study report headline

study: $(VENV)/.study            ## run a kept study in a folder of its own: make study NAME=lfw-smiling-8
	python -m study run $(NAME)

# Three processes on two cores: a test that starts a study waits for it now and then.
test: $(VENV)/.test data         ## run all tests
	OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.bench data       ## measure every speed side by side; writes benchmarks/
	dvc repro embed
	python -m benchmarks.run

html: $(VENV)/.study             ## every executed notebook as a page in build/html/
	python -m study report pages

lab: $(VENV)/.study data         ## the notebooks in JupyterLab, with the current parameters
	python -m study lab
	PYTHONWARNINGS="ignore:IProgress not found" jupyter lab build/lab $(if $(filter 0,$(shell id -u)),--allow-root)

cost: $(VENV)/.study data        ## what `dvc repro` would run, about how long, and what it could show
	python -m study cost

rehearse: NAME ?= celeba-smiling-8
rehearse: $(VENV)/.study         ## its time and memory without images: make rehearse ANNOTATIONS=table.parquet NAME=celeba-smiling-8
	python -m study rehearse $(ANNOTATIONS) --study $(NAME)

celeba: NAME ?= celeba-smiling-8
celeba: PART ?= development
celeba: $(VENV)/.study           ## from CelebA on disk, also a part of it, to a report: make celeba FOLDER=CelebA NAME=celeba-smiling-8
	@test -n "$(FOLDER)" || { echo "error: say where CelebA is: make celeba FOLDER=path/to/CelebA" >&2; exit 1; }
	python -m study import celeba "$(FOLDER)" --part $(PART) --unless-there
	dvc add --quiet data
	python -m study run $(NAME)

check: $(VENV)/.study            ## is the report whole, and of these data, settings and code?
	python -m study provenance check $(NAME)

verify: $(VENV)/.study data      ## run the study, or a kept one (NAME=...); are the numbers those that were committed?
	python -m study run $(NAME)
	python -m study provenance verify $(NAME)

kills: $(VENV)/.test data        ## kill a study, import, embedding, report and experiment at random; the same bytes?
	python -m tests.study.kills --times 20

data: $(VENV)/.study             ## fetch the data set from the remote inside the repository
	python -m study params
	@test -e data.dvc || { echo "error: data.dvc is missing; restore it with 'git checkout data.dvc', or track" \
	  "data of your own with 'dvc add data'" >&2; exit 1; }
	dvc pull --quiet data.dvc

people: $(VENV)/.test            ## render the virtual people anew; then `dvc add data && dvc push`
	python -m study people data --seed 0

networks: $(VENV)/.networks      ## three more networks: MobileFaceNet, SFace, one taught no face; says what to write into params.yaml
	python -m study mobilefacenet
	python -m study sface
	python -m study imagenet

clean-notebooks: $(VENV)/.study  ## strip outputs from the source notebooks before a commit
	python -m study notebooks clean notebooks/*/*.ipynb

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: run 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.study: $(VENV)/bin/python pyproject.toml requirements.lock hashes/study.txt
	@echo "Installing pinned packages into $(VENV): a few minutes, $(if $(TORCH),1.8 GB,6.6 GB on Linux, where torch carries CUDA)."
ifeq ($(TORCH),)
	$(PIP) --require-hashes -r hashes/study.txt
	$(PIP) --no-deps --no-build-isolation -e .
else
	@case "$(TORCH)" in *://*) ;; *) \
	  echo "error: TORCH is the address of an index with builds for processors; pytorch.org names it" >&2; exit 1;; esac
	$(INSTALL) --index-url $(TORCH) torch torchvision
	$(INSTALL) -e '.[study]'
endif
	@$(VENV)/bin/python -m study detector || true  # which says what stands in
	@touch $@

$(VENV)/.test: $(VENV)/.study hashes/test.txt
ifeq ($(TORCH),)
	$(PIP) --require-hashes -r hashes/test.txt
else
	$(INSTALL) -e '.[study,people,test]'
endif
	@touch $@

$(VENV)/.networks: $(VENV)/.study
	$(INSTALL) -e '.[study,networks]'
	@touch $@

$(VENV)/.bench: $(VENV)/.study
	$(INSTALL) -e '.[study,bench]'
	@touch $@
