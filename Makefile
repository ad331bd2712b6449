# `make serve` and `make test` do all the setup. Both work on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
PORT ?= 8080
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
COVERAGE := --cov --cov-report=term-missing:skip-covered --cov-fail-under=95
DOCKER ?= docker

.PHONY: help serve notebook now image test test-all test-quick docs screenshots check bench

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

serve: .venv/serve ## serve your settings.toml, or else the demo, on http://127.0.0.1:8080; PORT= takes another port
	$(BIN)/python -m app serve --port $(PORT)

notebook: .venv/notebook ## open JupyterLab on a notebook that trains a classifier and serves it (installs 2.2 GB)
	cd notebook && ../$(BIN)/python -m jupyterlab train_and_serve.ipynb $(ARGS)

now: .venv/serve ## put it online with Vercel; ARGS=--prod deploys to the public link
	$(BIN)/python -m app now $(ARGS)

image: ## build the image; DOCKER=podman takes another builder, ARGS=--build-arg=BAKE_MODEL=1 puts the checkpoint into it
	$(DOCKER) build -t fastai-now $(ARGS) .

test: .venv/dev tests/node_modules ## install everything (3.5 GB) and run the tests
	$(PYTEST) -m "not exhaustive" $(COVERAGE)

test-all: .venv/dev tests/node_modules ## the same, with the tests that CI alone runs
	$(PYTEST) $(COVERAGE)

test-quick: .venv/quick ## the tests that need no torch and no browser: about a minute
	$(BIN)/python -m pytest -n 4 --dist loadfile -m "not (torch or slow or deploy or exhaustive)"

docs: .venv/quick ## write the generated documents
	$(BIN)/python -m tests.generate

screenshots: .venv/dev ## take a picture of each state of the page, in docs/screenshots
	$(BIN)/python -m tests.screenshots

check: .venv/dev ## ruff (lint and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev ## compare the server with the obvious one and a plain ONNX file, three networks: half an hour on an idle machine; ARGS="--turns 1"
	for name in resnet34 tf_efficientnet_lite0 convnext_tiny; do $(BIN)/python benchmarks/bench.py --architecture $$name --json bench-$$name.json $(ARGS) || exit 1; done

.venv/serve: requirements-serve.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; try: make PYTHON=python3.12 serve" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements-serve.txt
	@touch $@

# fastai v1, for the tests of its cell; Python 3.7 is not needed for anything else
PYTHON37 ?= python3.7
.venv/fastai1: tests/fastai1.txt
	$(PYTHON37) -m venv $@ && $@/bin/pip install --quiet --no-deps -r $<
	@touch $@

# of the page and of exports; without npm, pytest skips the tests that need them. ONNX Runtime would fetch CUDA
tests/node_modules: tests/package.json
	@cd tests && PUPPETEER_SKIP_DOWNLOAD=1 npm install --no-package-lock --no-audit --no-fund --loglevel=error \
		--onnxruntime-node-install=skip \
		&& touch node_modules || echo "npm is missing or failed: the tests that need it are skipped"

.venv/quick: .venv/serve requirements-test.txt
	$(BIN)/pip install --quiet -r requirements-test.txt
	@touch $@

.venv/notebook: .venv/serve requirements.txt requirements-notebook.txt
	$(BIN)/pip install --quiet -r requirements-notebook.txt
	@touch $@

.venv/dev: .venv/quick requirements.txt requirements-notebook.txt requirements-cluster.txt requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@
