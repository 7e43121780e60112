# `make demo`, `make smoke` (three CPU minutes) and `make test` set up .venv first; PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo smoke test lint docs lock setup clean

setup: .venv/ready
	@echo "ready: 'source .venv/bin/activate' puts the command eef on the path; then 'eef' lists its commands"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "eef needs Python 3.11 or newer: make PYTHON=python3.11"'
	@echo "1 of 2: a virtual environment in .venv"
	$(PYTHON) -m venv .venv
	@echo "2 of 2: the libraries of constraints.txt, one to three minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/ready
	$(BIN)/eef sweep experiments/demo.yaml

# one or more files for each package, few of which start a process
SMOKE := test_selection test_method_masks test_trajectory test_settings test_architecture test_methods test_package \
  envs/test_extras envs/webshop/test_webshop_session agents/test_chat agents/test_actions experts/test_experts \
  training/test_trainer tracking/test_runs sweeps/test_progress analysis/test_statistics analysis/test_tables \
  models/test_walks evaluation/test_protocols exchange/test_exchange test_serving

smoke: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile $(SMOKE:%=tests/%.py)

test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy eef

docs: .venv/ready  # the site, in build/site: links are those of the repository, so it is built from a copy of its files
	rm -rf build/docs && mkdir -p build/docs
	tar -cf - --exclude=./.venv --exclude=./.git --exclude='./.*_cache' --exclude=./build --exclude=./experiments/runs \
	  --exclude='*.safetensors' --exclude=requirements.lock . | tar -xf - -C build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock:  # after a change of constraints.txt or of what pyproject.toml requires; needs uv (pip install uv)
	(sed '/^[^#]/,$$d' requirements.lock; uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --python-version 3.11.5 --python-platform x86_64-unknown-linux-gnu -c constraints.txt --extra dev pyproject.toml) > requirements.new
	mv requirements.new requirements.lock

clean:
	rm -rf .venv build experiments/runs
