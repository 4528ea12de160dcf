# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: demo test check format deviations mutation site clean

demo: .venv/installed
	dvc repro
	sfd show

# Two processes of one thread each: no file of tests is split between them, and the longest file starts first.
test: check
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: .venv/installed
	ruff check --fix .
	ruff format .

deviations: .venv/installed
	python tests/deviations.py

# By hand, within an hour on two cores: whether a test falls for every small change to the code that makes numbers.
mutation: .venv/installed
	python -m pip install --quiet --editable ".[mutation]"
	python tests/mutation.py

# The pages of docs/ with a reference of commands and settings, in site/; `mkdocs serve` shows them while they are written.
site: .venv/installed
	mkdocs build --strict

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf .venv
