# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast lint types format clean help data

help:
	@echo "make demo    train ResNet-20 on Fashion-MNIST: plain, SE, CBAM and a control of equal size; about 3 minutes"
	@echo "make test    the whole test suite, linter and type checker"
	@echo "make format  format the code"

# torchvision brings the torch build that it was made for; a CPU-only torch would not fit it.
$(BIN)/cbam: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "Python 3.10 or newer is needed, this is $$($(PYTHON) --version). Type: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and what goes with it into $(VENV): about two minutes."
	$(BIN)/python -m pip install --quiet --editable '.[compare]'
	@touch $@

$(VENV)/.dev: $(BIN)/cbam
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Debian and Ubuntu carry Fashion-MNIST as a package; elsewhere torchvision downloads it into the user's cache.
data:
	@if [ ! -d /usr/share/datasets/fashion-mnist ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get install -y -q dataset-fashion-mnist || { apt-get update -q && apt-get install -y -q dataset-fashion-mnist; }) \
			>/dev/null 2>&1 || echo "dataset-fashion-mnist could not be installed; looking for the images elsewhere."; fi

demo: $(BIN)/cbam data
	$(BIN)/cbam compare --config recipes/demo.yaml --output $(DEMO)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
