# Everything a newcomer needs: `make book` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CHAPTERS = $(wildcard book/*.ipynb)
# A page that was read once is not read again, and would not warn again: after a failure all are.
BUILD_BOOK = $(BIN)/jupyter-book build book --config _config.yml --path-output . -W -n --keep-going \
	|| { rm -rf _build/.doctrees; exit 1; }
UNIT = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

.PHONY: help book test lint unit slow chapters pages gpu check format address hooks clean FORCE

help: ## say what can be made (this)
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

book: chapters ## run the chapters and build the book into _build/html
	$(BUILD_BOOK)
	@echo "Open $(CURDIR)/_build/html/index.html"

test: lint unit pages ## everything that must pass: format, types, units, chapters, pages

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY) ## the tests of the package and the repository
	$(UNIT) -m "not page and not slow and not gpu"

slow: $(READY) ## the unit tests that only CI runs
	$(UNIT) -m "slow and not page and not gpu"

# The outputs go into the cache that Jupyter Book reads: in `make book test` each chapter runs once.
chapters: $(READY) _build/inputs ## run every chapter that changed, or whose package, data or environment did
	$(BIN)/python .ci/chapters.py

pages: book ## look at the built book in a headless browser
	$(BIN)/pytest -n 2 -m page tests/book

gpu: ## measure training on one CUDA card; needs no .venv and no network
	PYTHONPATH=. $(PYTHON) tests/benchmarks/gpu.py

check: lint ## what to run before a commit: format, types, and the quick unit tests, in less than 90 seconds
	$(UNIT) -m "not page and not slow and not gpu and not thorough"

format: $(READY) ## format the code, strip outputs from the notebooks
	$(BIN)/nbstripout $(CHAPTERS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

address: $(READY) ## change the repository's address everywhere: make address URL=https://github.com/you/name
	$(BIN)/python .ci/address.py $(URL)

hooks: $(READY) ## strip outputs and format at every commit
	$(BIN)/nbstripout --install --attributes .gitattributes
	$(BIN)/pip install --quiet pre-commit && $(BIN)/pre-commit install

clean: ## remove what was built, keep .venv
	rm -rf _build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[book,test]' --constraint constraints.txt
	@touch $@

# The execution cache knows a chapter's code, not what the code calls: it is emptied when the package, the data or
# the environment change. A sum of contents, not of times, so that switching branches and back costs nothing.
_build/inputs: FORCE
	@mkdir -p _build
	@find icd data pyproject.toml constraints.txt -type f ! -path '*/__pycache__/*' | sort > $@.names
	@(cat $@.names; git hash-object --stdin-paths < $@.names) | git hash-object --stdin > $@.new
	@cmp -s $@.new $@ || rm -rf _build/.jupyter_cache _build/.doctrees
	@mv $@.new $@ && rm $@.names
