# make run: install, then one run.   make test: install, then the tests.   make test-whole: the tests of whole runs,
# trainings and programs of their own.   make lint: install, then style and types.
# make docs: the documentation as a site in site/, in an environment of its own.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test test-whole lint docs install
run: install
	$(BIN)/python launch.py

# Two processes with one thread each. Bytecode is kept, for the next run and for the processes that tests start.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: install
	$(PYTEST)

test-whole: install
	$(PYTEST) -m 'whole and not slow and not gpu'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

$(VENV)-docs/installed: docs/requirements.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

install: $(VENV)/installed

# Installs the exact versions of requirements.lock and checks their hashes; about 6 GB, most of it torch.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
