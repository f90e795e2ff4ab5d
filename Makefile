# Every target makes .venv first if it is missing or older than the files that define it.
PYTHON ?= python3
BIN := .venv/bin
# A process per core; tests of one file stay together, for what they share.
# Files in the order of tests/conftest.py, long ones first: xdist's own, by their number of tests, has these last.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-all lint bench clean
help:
	@echo "make demo      train, evaluate and picture a prototype model on the built-in data (minutes, CPU)"
	@echo "make test      the default test suite"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      ruff and mypy"
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

bench: .venv/.installed
	$(BIN)/python -m benchmarks head

clean:
	rm -rf .venv runs
