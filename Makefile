# Each target finds or makes its own Python environment (tools/python.sh); nothing needs to be installed before.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo demo-full test test-slow audit lint format env clean

# Tests share the cores, a file at a time, with one torch thread each: several processes make multi-threaded torch
# many times slower.
RUN = py=$$(sh tools/python.sh) && PYTHONPATH="$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH}" HF_HUB_OFFLINE=1
SHARED = -n auto --maxprocesses 8 --dist loadfile
ONE = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

help:
	@echo "make demo       distil the embedded tiny pipeline in five minutes and write runs/demo/report.html"
	@echo "make demo-full  the same with more updates and more prompts, the teacher drawn anew"
	@echo "make test       lint, types and the quick tests (what .ci/run runs)"
	@echo "make test-slow  the long tests, the trials of docs/reliability.md among them; counts at the end"
	@echo "make audit      look up the pinned dependencies among published vulnerabilities"
	@echo "make lint       ruff, format check, mypy"
	@echo "make format     let ruff rewrite"
	@echo "make env        only prepare the environment"
	@echo "make clean      remove .venv and caches (never runs/)"

env:
	@py=$$(sh tools/python.sh) && echo "$$py"

demo:
	@$(RUN) "$$py" -m fewstep demo $(ARGS)

demo-full:
	@$(RUN) "$$py" -m fewstep demo --recipe demo-full $(ARGS)

test: lint
	@$(RUN) $(ONE) "$$py" -m pytest $(SHARED) $(ARGS)

test-slow:
	@$(RUN) $(ONE) "$$py" -m pytest -m slow $(ARGS)

audit:
	@$${FEWSTEP_PYTHON:-python3} tools/audit.py

lint:
	@$(RUN) "$$py" -m ruff check .
	@$(RUN) "$$py" -m ruff format --check .
	@$(RUN) "$$py" -m mypy

format:
	@$(RUN) "$$py" -m ruff check --fix . && "$$py" -m ruff format .

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
