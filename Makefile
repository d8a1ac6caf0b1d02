# Two commands do all set-up: `make quickstart` and `make test`. `make docs`, `make notebooks` and `make wheel` come on top.
.PHONY: quickstart test test-quick lint docs notebooks wheel

# Python keeps what it has compiled, whatever the environment says: dozens of processes import the same packages.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALL := $(VENV)/bin/uv pip install --quiet --python=$(PYTHON)
WORKDIR := runs/quickstart

# Install, train for a few minutes on two CPU cores, evaluate on held-out files, and write some Python.
# Large arrays lie in huge pages, where Linux and glibc know them: a training step then waits less for memory.
quickstart: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
quickstart: $(VENV)/installed
	$(PYTHON) train.py --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(PYTHON) -m transnormer_jax.generate --workdir=$(WORKDIR) --prompt="    def __init__(self, " \
	  --temperature=0.5 --max_new_tokens=400

# Install, check style, types and the direction of imports, and run every test.
test: $(VENV)/installed-dev $(VENV)/libtpu lint
	$(VENV)/bin/pytest -n 2 --dist=loadfile

# The tests that take no longer than a second or two each.
test-quick: $(VENV)/installed-dev
	$(VENV)/bin/pytest -n 2 --dist=loadfile -m "not slow"

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The documentation as a site in site/. A warning is an error, which it is not to mkdocs under --quiet.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

# Run every notebook from its first cell to its last.
notebooks: $(VENV)/installed-dev
	$(VENV)/bin/pytest -n 2 --nbmake --nbmake-timeout=300 -p no:cacheprovider -W default docs/notebooks

# Build sdist and wheel into dist/, and use the wheel in an environment of its own.
wheel: $(VENV)/installed-dev
	bash .ci/wheel

$(VENV)/bin/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo "error: python3 is older than 3.12: install Python 3.12 or newer, or activate it first."; exit 2; }
	python3 -m venv $(VENV)

# What installs; it reads UV_DEFAULT_INDEX, not pip's configuration.
$(VENV)/bin/uv: | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet uv

# The TPU compiler, for the tests that hold the schedules of the TPU kernels. It stays out of Python's path: where jax
# finds it, jax looks for a TPU. The version is the one whose schedules benchmarks/tpu_bundles.py reads.
$(VENV)/libtpu: | $(VENV)/bin/uv
	$(INSTALL) --no-deps --target=$@ 'libtpu==0.0.52' || \
	  echo "libtpu cannot be installed here: the tests of TPU schedules will be skipped"

$(VENV)/installed: pyproject.toml | $(VENV)/bin/uv
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/uv
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/installed
