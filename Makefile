# The verbs of this project. CI runs `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= data
PORT   ?= 8000

.PHONY: up setup test lint types clean

up: setup ## start everything on this machine: http://127.0.0.1:8000
	@exec $(BIN)/foreseen up --data $(DATA) --port $(PORT) --model minilm --model fingerprint

setup: $(VENV)/installed ## put everything, the command `foreseen` too, into .venv

$(VENV)/installed: pyproject.toml
	@echo "setup: installing into $(VENV) (a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on --editable '.[dev]'
	@touch $@

lint: setup ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint ## the whole test suite, from nothing
	@$(BIN)/python -m pytest

clean: ## remove the environment and what was built
	rm -rf $(VENV) $(DATA) build *.egg-info
