# Every target sets up what it needs by itself (.venv, by infra/setup.sh; a moment when it is there already).
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format types
BIN := .venv/bin
WORKERS ?= 2  # processes that share the tests, each with a Ray and an engine of its own (2 GiB)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup:  ## make .venv ready
	@infra/setup.sh

demo: setup  ## the whole thing, for real, on two CPU cores: world, base model, data, SFT, GRPO, evaluation
	@$(BIN)/mmsearch demo

test: setup  ## unit and integration tests (at most 10 minutes)
	@$(BIN)/python -m pytest -q --durations 15 -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: setup  ## chaos, storage and end to end (at most 35 minutes)
	@$(BIN)/python -m pytest -q --durations 30 --timeout 1500 -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow $(AGAIN) tests

lint: setup  ## style, formatting and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

format: setup  ## format and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup  ## pyright
	@$(BIN)/pyright
