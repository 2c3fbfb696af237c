# `make train` trains the main job, `make test` runs every check, `make check` those that take at most two minutes, and
# `make test-cluster` those that need a cluster of SLURM: the one of the shell, or one started by $BEVRESHAPE_SLURM/start.sh.
# Each sets up .venv on the first call.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: train test check test-cluster test-gpu lint clean

train: $(INSTALLED)
	$(RUN) -m bevreshape.train

TESTS := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope

test: $(INSTALLED) lint
	$(TESTS)

check: $(INSTALLED) lint
	$(TESTS) -m "not slow and not slurm"

test-cluster: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slurm tests/cluster

# What waits for a GPU, one test after another; the machines of CI have none.
test-gpu: $(INSTALLED)
	@$(RUN) -c "import sys, torch; torch.cuda.is_available() or sys.exit('make test-gpu: torch ' + torch.__version__ + \
		' finds no CUDA device on this machine; run it on one with a GPU and a driver for CUDA ' + str(torch.version.cuda))"
	$(RUN) -m pytest -m gpu

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The stamp is written last, so an installation that was broken off is begun again.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "bevreshape needs Python 3.11 to 3.13; install one, or say which: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e '.[dev]'
	$(RUN) -m pip install --quiet --no-deps 'nuscenes-devkit>=1.2'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist
