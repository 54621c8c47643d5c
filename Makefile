# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Any torch >= 2.6 works. TORCH_INDEX takes the address of PyTorch's CPU builds where the plain name brings CUDA.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-ci test-versions test-lowest test-newest gpu lint format clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/pqkv train-codebooks --bits 4 -o results/demo/codebooks.safetensors
	$(BIN)/pqkv eval --paged --page-size 64 --codebooks results/demo/codebooks.safetensors \
		--context 512,2048 --control --force -o results/demo
	$(BIN)/pqkv report results/demo -o results/demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadgroup

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# the slow tests that CI runs as well
test-ci: $(READY)
	$(BIN)/python -m pytest -m "slow and ci" -n auto --dist loadgroup

# what meets transformers, with the lowest and the newest one that pyproject.toml allows, each in a folder of its own
LOWEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
MEETS_TRANSFORMERS := tests/lm tests/quality/test_schedule_equality.py tests/quality/test_decode_mode.py \
	tests/quality/test_bos_and_controls.py tests/quality/test_coded_share.py tests/quality/test_rotated.py
test-versions: test-lowest test-newest
test-lowest: TRANSFORMERS = transformers==$(LOWEST)
test-newest: TRANSFORMERS = transformers>=$(LOWEST),<6
test-lowest test-newest: $(READY)
	$(BIN)/pip install --quiet --upgrade --no-deps --target build/$@ "$(TRANSFORMERS)"
	PYTHONPATH=$(CURDIR)/build/$@ $(BIN)/python -c "import transformers; print('transformers', transformers.__version__)"
	PYTHONPATH=$(CURDIR)/build/$@ $(BIN)/python -m pytest -n auto --dist loadgroup $(MEETS_TRANSFORMERS)

# on a machine with an NVIDIA GPU; any Python that has the packages will do: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) experiments/gpu/run.py

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
