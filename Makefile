# make demo | make test | make test-clients | make test-distributed | make test-optax | make test-versions |
# make fuzz | make bench [QUICK=1] | make wheel | make docs: each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-clients test-distributed test-optax test-versions fuzz bench wheel docs docs-check api stubs format clean

demo: $(VENV)/examples
	$(BIN)/python examples/attacks.py

test: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=95
	RAI_CHAIN_KERNELS=off $(BIN)/python -m pytest -q \
		tests/links/test_laws.py tests/links/test_projections.py tests/links/test_frank_wolfe.py

# The oldest and the newest of the declared versions; ONLY="torch==2.13.0 -- tests/links" narrows it.
test-versions: $(VENV)/test
	$(BIN)/python tests/versions.py oldest $(ONLY)
	$(BIN)/python tests/versions.py newest $(ONLY)

# Until Ctrl-C, from a random seed; SECONDS=600 for so long.
fuzz: $(VENV)/test
	$(BIN)/python tests/fuzz/run.py $(if $(SECONDS),--seconds $(SECONDS))

# Real clients beside the loop by hand; writes docs/clients.md. About five minutes.
test-clients: $(VENV)/clients/ready
	$(VENV)/clients/bin/python -m pytest tests/clients

# Tensors that 2, 4 and 8 processes share: many random shapes and placements.
test-distributed: $(VENV)/test
	RAI_CHAIN_TESTS=long $(BIN)/python -m pytest -q tests/distributed

# The tests that optax's wheel ships, on the functions of this library: some minutes. LONG=1: with
# its optimizations of 10,000 steps, some minutes more.
test-optax: $(VENV)/test
	$(if $(LONG),RAI_CHAIN_TESTS=long )$(BIN)/python tests/oracles/optax_suite.py

bench: $(VENV)/test
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)
	$(BIN)/python -m benchmarks.scale $(if $(QUICK),--quick)

# What a user of the wheel has: an environment with nothing else in it.
USE_WHEEL := import torch, rai_chain as rc; from rai_chain.kernels import backend; \
	tx = rc.chain(rc.top_q(0.5), rc.normalize(1), rc.scale(-1.0), rc.l1_ball(1.0)); \
	p = torch.ones(2, 4); \
	new, _ = tx.step(p, torch.randn(2, 4), tx.init(p)); \
	assert (new.abs().sum(1) <= 1).all(); print(rc.__version__, backend)

wheel: $(VENV)/build
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	rm -rf $(VENV)/wheel
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd $(VENV)/wheel && bin/python -W error::RuntimeWarning -c "$(USE_WHEEL)"

docs: $(VENV)/docs
	rm -rf docs/_build docs/api docs/pictures docs/benchmarks.md
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo open docs/_build/html/index.html

# Needs Chromium (Debian: apt install chromium), or CHROMIUM=/path/to/it.
docs-check: docs
	$(BIN)/python docs/check.py

# The public names and signatures; a test fails where they differ from the package.
api: $(VENV)/test
	$(BIN)/python tests/public.py

# The stubs say what decorators and declarations make; a test sees that they are current.
stubs: $(VENV)/test
	$(BIN)/python tests/stubs.py
	-$(BIN)/ruff check --fix -q rai_chain
	$(BIN)/ruff format -q rai_chain

format: $(VENV)/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info out docs/_build docs/api docs/pictures docs/benchmarks.md rai_chain/kernels/*.so

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/examples: $(VENV)/python pyproject.toml constraints.txt
	@echo "Installing torch and what the examples need into $(VENV): 1.3 GB of disk with the CPU wheel of"
	@echo "torch, which is enough. If pip starts on a CUDA wheel (several GB), stop it and choose"
	@echo "another index by PIP_INDEX_URL. This happens once."
	$(PIP) torch==2.13.0
	$(PIP) -e '.[examples]'
	touch $@

# timm's optimizers need nothing; its models need torchvision, and that another torch.
CLIENTS_PIP := $(subst $(BIN),$(VENV)/clients/bin,$(PIP))
$(VENV)/clients/ready: tests/clients/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)/clients
	$(CLIENTS_PIP) torch==2.13.0
	$(CLIENTS_PIP) -e . -r tests/clients/requirements.txt
	$(CLIENTS_PIP) --no-deps timm==1.0.31
	touch $@

$(VENV)/build: $(VENV)/python
	$(PIP) build twine
	touch $@

$(VENV)/docs: $(VENV)/examples
	$(PIP) -e '.[docs]'
	touch $@

# What the tests compare with: the dependencies of these would replace torch.
PEERS := rai-toolbox==0.2.1 torchattacks==3.5.1 cleverhans==4.0.0
$(VENV)/test: $(VENV)/examples Makefile
	$(PIP) -e '.[test,bench]'
	$(PIP) --no-deps $(PEERS)
	touch $@
