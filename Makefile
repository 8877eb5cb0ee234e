# Two commands matter: `make run` and `make test`. The rest is for people who work on promptmill.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TASK ?= tweet_sentiment
FAULT_SECONDS ?= 3600

.PHONY: run test check format test-slow test-faults test-services check-supply check-infra e2e ui clean

run: $(INSTALLED)  ## one tuned prompt, end to end, from real data to the registry
	@$(BIN)/promptmill run $(TASK)

test: $(INSTALLED)  ## the default test tier: offline, under 10 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not e2e and not faults and not services" --numprocesses 2 --dist loadfile

check: $(INSTALLED)  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

check-supply: $(INSTALLED)  ## pinned versions, SBOM, known vulnerabilities (these need a network)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[supply]"
	$(BIN)/python infra/check_supply.py

check-infra: $(INSTALLED)  ## compose, images, manifests, charts, monitoring and scripts, without a container engine
	$(BIN)/python -m infra.check_infra

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-slow: $(INSTALLED)  ## minutes: real tuning runs
	$(BIN)/python -m pytest -m slow

test-faults: $(INSTALLED)  ## flipped bits, killed processes and servers, full disks, versions made again; docs/reliability.md has the counts; the killed runs end after FAULT_SECONDS
	OMP_NUM_THREADS=1 PROMPTMILL_FAULT_SECONDS=$(FAULT_SECONDS) $(BIN)/python -m pytest -m faults

test-services: $(INSTALLED)  ## PostgreSQL, Prefect, MLflow, an S3 endpoint and workers as processes on this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "services and not slow"

e2e: $(INSTALLED)  ## one real promptmill run on the shortened demo task
	$(BIN)/python -m pytest -m e2e

ui: $(INSTALLED)
	@$(BIN)/promptmill ui

# infra/demo-packages.txt says why these packages are installed without what they ask for.
$(INSTALLED): pyproject.toml constraints.txt infra/demo-packages.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --requirement infra/demo-packages.txt
	@touch $@
