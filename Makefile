# Every target sets up its own virtual environment; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: quickstart test quick lint docs pictures bench soak audit clean

quickstart: $(INSTALLED)
	$(BIN)/fedsim run experiments/quickstart.toml
	$(BIN)/fedsim compare runs/quickstart

test: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Everything that starts no Ray and takes no more than a moment.
quick: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not ray and not slow"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The pages of docs/ as a site in build/docs; links, anchors and references that lead nowhere are errors. Needs no network.
docs: $(INSTALLED)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --fresh-env --conf-dir docs . build/docs
	@echo "The documentation is in build/docs/index.html"

# What docs/pictures shows, from 29 runs that take a minute on two idle cores.
pictures: $(INSTALLED)
	$(BIN)/python docs/pictures/draw.py runs/pictures

# On an otherwise idle machine; the first time, the peers' environments are downloaded, which are large.
BENCHMARKS := startup partitions aggregation training overhead scale barriers precisions alignment frozen adapters
bench: $(INSTALLED)
	@start=$$(date +%s); for name in $(BENCHMARKS); do \
		echo "$(BIN)/python benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit; \
	done; echo "all benchmarks took $$((($$(date +%s) - start + 30) / 60)) minutes"

# What docs/reliability.md promises, tried for an hour; `make soak ONLY=kills MINUTES=5 SEED=7` for a part of it.
MINUTES ?= 60
SEED ?= 0
ONLY ?= kills signals damage disk folder processes fuzz rounds
soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --seed $(SEED) --only $(ONLY) --save

# Known vulnerabilities of what is installed; needs the network.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs,peers,adapters,transformers,flwr-datasets,tensorboard,wandb,mlflow]'
	touch $@

clean:
	rm -rf .venv .venv-audit build runs benchmarks/.venvs
