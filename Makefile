# Every target makes .venv first if it is missing or older than the files that define it.
PYTHON ?= python3
BIN := .venv/bin
# A process per core; tests of one file stay together, for what they share.
# Files in the order of tests/conftest.py, long ones first: xdist's own, by their number of tests, has these last.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-all lint docs dist bench clean
help:
	@echo "make demo      train, evaluate and picture a prototype model on the built-in data (minutes, CPU)"
	@echo "make test      the default test suite"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the manual as pages, site/index.html"
	@echo "make dist      wheel and sdist in dist/, each installed in a fresh environment and tried there"
	@echo "make bench     time the prototype core against two plain matrix products and the usual loop"

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"protoseg needs Python 3.10 to 3.13, got {sys.version.split()[0]}; run make PYTHON=python3.12")'
	@echo "Setting up .venv (some gigabytes, a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.installed
	$(BIN)/python train.py experiment=streets_demo hydra.run.dir=runs/demo resume=auto
	$(BIN)/python evaluate.py ckpt_path=runs/demo/checkpoints/best.ckpt hydra.run.dir=runs/demo/evaluate

test: .venv/.installed
	$(PYTEST)

test-all: .venv/.installed
	$(PYTEST) -m ''

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

# From an empty folder, so that nothing of the checkout is found; the sdist is what the wheel is built from.
dist:
	rm -rf dist build/smoke && mkdir -p build/smoke
	$(PYTHON) -m venv build/smoke/venv
	build/smoke/venv/bin/python -m pip install -q --disable-pip-version-check build
	build/smoke/venv/bin/python -m build -q -o dist .
	build/smoke/venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(ls $(CURDIR)/dist/*.whl)[weights]" pytest
	cp tests/smoke/test_installed.py build/smoke/
	cd build/smoke && venv/bin/python -m pytest -q -c /dev/null -W ignore::pytest.PytestUnknownMarkWarning test_installed.py

bench: .venv/.installed
	$(BIN)/python -m benchmarks head

clean:
	rm -rf .venv runs site
