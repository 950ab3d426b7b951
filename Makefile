# Two commands: `make demo` sets up and runs the main job, `make test` sets up and passes the tests.
# Both need only Python 3.10+ and a package index. PHOTO=FILE edits your own photograph.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= output
PHOTO ?=

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/gan-inversion demo --output $(OUTPUT) $(if $(PHOTO),--image "$(PHOTO)")

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OUTPUT)
