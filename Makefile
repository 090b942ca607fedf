# Everything here sets up what it needs: Debian packages by apt-get, Python packages in .venv.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
DEPENDENCIES = $(shell sed -n '/^\# dependencies/s/[^"]*\("[^]]*\).*/\1/p' k2hr3_osnl.py | tr -d ',')

.PHONY: help demo test lint clean

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

$(VENV)/ready: k2hr3_osnl.py lab/requirements.txt lab/provide.sh
	@lab/provide.sh rabbitmq-server python3-venv
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check $(DEPENDENCIES) -r lab/requirements.txt
	@touch $@

demo: $(VENV)/ready  ## Three instances are deleted, and K2HR3 hears of it; with the API down, too
	@$(BIN)/python -m lab.demo

test: $(VENV)/ready  ## All tests, on a real broker
	$(BIN)/python -m pytest

lint: $(VENV)/ready  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy k2hr3_osnl.py test_k2hr3_osnl.py lab

clean:  ## Remove what these commands made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
