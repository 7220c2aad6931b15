# make demo | make test | make bench [QUICK=1]: each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench format clean

demo: $(VENV)/examples
	$(BIN)/python examples/sparse_attack.py

test: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=95

bench: $(VENV)/test
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

format: $(VENV)/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info out

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/examples: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e '.[examples]'
	touch $@

# rai-toolbox is what the tests compare with; its own dependencies would replace torch.
$(VENV)/test: $(VENV)/examples
	$(PIP) -e '.[test,bench]'
	$(PIP) --no-deps rai-toolbox==0.2.1
	touch $@
