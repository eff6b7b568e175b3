# Every target sets up its own virtual environment; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: quickstart test quick lint bench clean

quickstart: $(INSTALLED)
	$(BIN)/fedsim run experiments/quickstart.toml
	$(BIN)/fedsim compare runs/quickstart

test: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Everything that starts no Ray and takes no more than a moment: under a minute on two cores.
quick: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not ray and not slow"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# About 40 minutes on two idle cores, and 5 GB of downloads for the peers' environments the first time.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/partitions.py
	$(BIN)/python benchmarks/aggregation.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/barriers.py
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/frozen.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	touch $@

clean:
	rm -rf .venv runs benchmarks/.venvs
