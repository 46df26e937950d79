# Every target is one Python command, shown by `make help`, for machines without make.
PYTHON ?= python3
TORCH_INDEX ?=
EXTRAS ?=
FROM ?=
SAVE ?=

ifeq ($(OS),Windows_NT)
VENV_PYTHON := .venv/Scripts/python.exe
else
VENV_PYTHON := .venv/bin/python
endif

.DEFAULT_GOAL := help
.PHONY: help setup course test test-slow lab figures bench bench-data bench-train clean

help:
	@echo "make setup      the environment in .venv: pinned packages and a Jupyter kernel"
	@echo "                (python3 tools/setup_env.py; every other target does this first)"
	@echo "make course     all notebooks in order, then your model answers and sits its exam"
	@echo "                (python -m tinyllm_lib.course)"
	@echo "make lab        JupyterLab on notebooks/"
	@echo "                (python -m jupyterlab notebooks)"
	@echo "make test       ruff, unit tests, every notebook at the ci profile"
	@echo "                (python tools/run_tests.py)"
	@echo "make test-slow  the same, with the slow tests and every notebook alone from nothing"
	@echo "                (python tools/run_tests.py --slow)"
	@echo "make figures    the pictures in figures/"
	@echo "                (python -m tinyllm_lib.figures)"
	@echo "make bench      all benches, each of ours against a library that does the same, on an idle machine"
	@echo "                (each of the commands below)"
	@echo "make bench-data reading, tokenizer training, encoding"
	@echo "                (python -m tinyllm_lib.bench.data)"
	@echo "make bench-train training, against the plain recipe with transformers"
	@echo "                (python -m tinyllm_lib.bench.train)"
	@echo "make clean      removes caches and build leftovers; keeps .venv and workspace/"
	@echo "                (python tools/clean.py)"
	@echo
	@echo "In brackets: the same without make, with the Python of .venv once it is there"
	@echo "(.venv/bin/python, on Windows .venv\\Scripts\\python)."
	@echo
	@echo "PYTHON=python3.12         another Python (3.11 or newer) for a new .venv"
	@echo "TORCH_INDEX=URL           where torch comes from, e.g. the small build without CUDA:"
	@echo "                          https://download.pytorch.org/whl/cpu"
	@echo "EXTRAS=hub,serve,llama    more packages, by the groups of pyproject.toml"
	@echo "SAVE=1                    make bench: renew figures/bench/ too, which README shows"
	@echo "FROM=05                   make course: go on from this notebook"
	@echo "TINYLLM_PROFILE=ci        ci, laptop (default), gpu or full: sizes of data and model"

setup:
	@$(PYTHON) tools/setup_env.py --torch-index "$(TORCH_INDEX)" --extras "$(EXTRAS)"

course: setup
	@$(VENV_PYTHON) -m tinyllm_lib.course $(if $(FROM),--from $(FROM))

lab: setup
	$(VENV_PYTHON) -m jupyterlab notebooks

test: setup
	@$(VENV_PYTHON) tools/run_tests.py

test-slow: setup
	@$(VENV_PYTHON) tools/run_tests.py --slow

figures: setup
	$(VENV_PYTHON) -m tinyllm_lib.figures

bench: bench-data bench-train

bench-data: setup
	@$(VENV_PYTHON) -m tinyllm_lib.bench.data $(if $(SAVE),--save)

bench-train: setup
	@$(VENV_PYTHON) -m tinyllm_lib.bench.train $(if $(SAVE),--save)

clean:
	@$(PYTHON) tools/clean.py
