PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MPLBACKEND := Agg

.PHONY: demo test lint types docs bench install clean

demo: install ## train the small SegFlow on the embedded default and show what it learned
	$(BIN)/python tools/demo.py

# Two workers of one thread each: more threads slow each other down.
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

docs: install ## the site, in docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going --quiet docs docs/_build/html

bench: install ## every benchmark, small sizes; see tools/bench for options
	for program in $(filter-out %/metrics_masks.py %/timing.py %/workers.py %/loops.py,$(wildcard tools/bench/*.py)); do $(BIN)/python $$program || exit 1; done

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("mtsp needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs docs/_build
