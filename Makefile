# Every target is one Python command: docs/contributing.md lists them, for machines without make.
PYTHON ?= python3
TORCH_INDEX ?=
EXTRAS ?=
FROM ?=
MINUTES ?=
SAVE ?=
DRY ?=
PORT ?=
CONFIG ?=

ifeq ($(OS),Windows_NT)
VENV_PYTHON := .venv/Scripts/python.exe
else
VENV_PYTHON := .venv/bin/python
endif

# Names of folders and redirected output are UTF-8, whatever the locale is.
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup course board test test-slow lab demo slides site figures bench bench-data bench-train bench-sample bench-soak bench-gpu clean

help:
	@echo "make setup         the environment in .venv: pinned packages and a Jupyter kernel; done first by all"
	@echo "make course        all notebooks in order, then your model answers and sits its exam"
	@echo "make board         CONFIG=my.json: your own recipe, three seeds of it, and a row in docs/board.md"
	@echo "make lab           JupyterLab on notebooks/"
	@echo "make demo          a web page for the classroom: chat with your model, choose its tokens"
	@echo "make slides        one lecture per notebook in build/slides/, which needs no network"
	@echo "make site          the course as web pages with search in build/site/, which need no network"
	@echo "make test          format, lint, types, unit tests, every notebook at the ci profile"
	@echo "make test-slow     the same, with the slow tests and every notebook alone from nothing"
	@echo "make figures       the pictures in figures/"
	@echo "make bench         the next four, on an idle machine; SAVE=1: renew figures/bench/, which docs show"
	@echo "make bench-data    reading, tokenizer training, encoding"
	@echo "make bench-train   training, against the plain recipe with transformers"
	@echo "make bench-sample  sampling, against transformers' generate and the loop without a cache"
	@echo "make bench-soak    a run killed twenty times at random, against an undisturbed one"
	@echo "make bench-gpu     one GPU, against transformers, in MINUTES=5; DRY=1: tiny, to try it on a CPU"
	@echo "make clean         removes caches and build leftovers; keeps .venv and workspace/"
	@echo
	@echo "PYTHON=python3.12        another Python (3.11 or newer) for a new .venv"
	@echo "TORCH_INDEX=URL          where torch comes from, e.g. https://download.pytorch.org/whl/cpu"
	@echo "EXTRAS=hub,serve,llama   more packages, by the groups of pyproject.toml"
	@echo "FROM=05 MINUTES=12       make course: go on from this notebook; as many steps as fit into 12"
	@echo "HOST=0.0.0.0 PORT=8866   make demo: where to listen (127.0.0.1: this machine alone)"
	@echo "TINYLLM_PROFILE=ci       ci, laptop (default), gpu or full: sizes of data and model"

setup:
	@"$(PYTHON)" tools/setup_env.py --torch-index "$(TORCH_INDEX)" --extras "$(EXTRAS)"

course: setup
	@$(VENV_PYTHON) -m tinyllm_lib.course $(if $(FROM),--from "$(FROM)") $(if $(MINUTES),--minutes "$(MINUTES)")

board: setup
	@$(VENV_PYTHON) -m tinyllm_lib.course.board $(if $(CONFIG),"$(CONFIG)")

lab: setup
	$(VENV_PYTHON) -m jupyterlab notebooks

# Only if given on the command line: some shells and conda set HOST to something else.
demo: setup
	@$(VENV_PYTHON) -m tinyllm_lib.course.demo $(if $(filter command,$(firstword $(origin HOST))),--host "$(HOST)") $(if $(PORT),--port "$(PORT)")

# The group `site` is installed the first time that it is wanted.
slides:
	@"$(PYTHON)" tools/setup_env.py --torch-index "$(TORCH_INDEX)" --extras "site,$(EXTRAS)"
	@$(VENV_PYTHON) tools/slides.py

site:
	@"$(PYTHON)" tools/setup_env.py --torch-index "$(TORCH_INDEX)" --extras "site,$(EXTRAS)"
	@$(VENV_PYTHON) tools/website.py

test: setup
	@$(VENV_PYTHON) tools/run_tests.py

test-slow: setup
	@$(VENV_PYTHON) tools/run_tests.py --slow

figures: setup
	$(VENV_PYTHON) -m tinyllm_lib.course.figures

bench: bench-data bench-train bench-sample bench-soak

bench-data: setup
	@$(VENV_PYTHON) -m tools.bench.data $(if $(SAVE),--save)

bench-train: setup
	@$(VENV_PYTHON) -m tools.bench.train $(if $(SAVE),--save)

bench-sample: setup
	@$(VENV_PYTHON) -m tools.bench.sample $(if $(SAVE),--save)

bench-soak: setup
	@$(VENV_PYTHON) -m pytest -q -p no:cacheprovider -m slow -k kill tests/train/test_train.py

bench-gpu: setup
	@$(VENV_PYTHON) -m tools.bench.gpu $(if $(MINUTES),--minutes "$(MINUTES)") $(if $(DRY),--dry-run) $(if $(SAVE),--save)

clean:
	@"$(PYTHON)" tools/clean.py
