# Two commands: `make demo` and `make test`. Both set up .venv first; PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs lock setup clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "eef needs Python 3.11 or newer: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/eef sweep experiments/demo.yaml

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy eef

docs: .venv/ready  # the site, in build/site: links are those of the repository, so it is built from a copy of the files that git knows
	rm -rf build/docs && mkdir -p build/docs
	git ls-files -coz --exclude-standard -- ':!*.safetensors' ':!requirements.lock' | tar --null -T - -cf - | tar -xf - -C build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock:  # after a change of constraints.txt or of what pyproject.toml requires; needs uv (pip install uv)
	(sed '/^[^#]/,$$d' requirements.lock; uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
	  --python-version 3.11.5 --python-platform x86_64-unknown-linux-gnu -c constraints.txt --extra dev pyproject.toml) > requirements.new
	mv requirements.new requirements.lock

clean:
	rm -rf .venv build experiments/runs
