# Each target sets up what it needs in .venv and is quick when that is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check soak clean

demo: $(VENV)/.installed
	$(BIN)/tinyseed demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile

check: $(VENV)/.installed-dev
	scripts/check

soak: $(VENV)/.installed-dev
	$(BIN)/python tests/faults/mutate_images.py 6000
	$(BIN)/python tests/faults/mutate_annotations.py 2000
	$(BIN)/python tests/faults/mutate_checkpoints.py 2400
	$(BIN)/python tests/faults/soak.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tinyseed needs Python 3.11 or newer; say which: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed
