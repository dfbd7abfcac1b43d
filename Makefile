# Every target sets itself up: python3 (3.11+), pip, make and git are all a fresh machine needs.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# one thread a process: two busy neighbours make more of them many times slower
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
PYTEST := $(PYTHON) -m pytest -n 2 --jaxtyping-packages=anystep,beartype.beartype

.PHONY: demo test test-all lint docs bench clean

demo: $(STAMP)
	$(VENV)/bin/anystep generate "a red apple" "a whale" "a smiling face with sunglasses" \
	    "a rocket on a blue background, flat style" "a dog face" "a tractor" \
	    --steps 1 2 4 8 16 32 --seed 0 --out demo.png

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# pages and the reference from docstrings, into site/; a broken link fails
docs: $(VENV)/.docs
	$(VENV)/bin/zensical build --strict

bench: $(STAMP)
	$(PYTHON) benchmarks/step_cost.py
	$(PYTHON) benchmarks/network_speed.py
	$(PYTHON) benchmarks/engine.py
	$(PYTHON) benchmarks/latency.py
	$(PYTHON) benchmarks/pipeline.py
	$(PYTHON) benchmarks/load.py
	$(PYTHON) benchmarks/studio.py
	$(PYTHON) benchmarks/growth.py
	$(PYTHON) benchmarks/prepare.py

$(STAMP): pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit("anystep needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.docs: $(STAMP)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
