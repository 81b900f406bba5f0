# gwtwins: everything a clone needs, on a machine that has Python (3.11 or 3.12) and make.
# PYTHON=... chooses the interpreter; the first of python3, python3.12, python3.11 that will do is taken otherwise.

PYTHON ?= python3 python3.12 python3.11
UV := uv==0.13.8
VENV := .venv
PY := $(VENV)/bin/python
# The stamp's name holds the folder's path: an editable install points at a path, so a moved or copied tree installs again.
STAMP := $(VENV)/.installed-$(shell printf '%s' "$(CURDIR)" | cksum | cut -d ' ' -f 1)
ROOMS := strain encoders ssl probes
START := $(shell date +%s)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))

# Arguments for what a target runs: make demo DEMO_ARGS="--steps 20", make bench BENCH="--batch 64", make test PYTEST="-k psd".
DEMO_ARGS ?=
DEMO_PROBE_ARGS ?=
BENCH ?=
PYTEST ?=
# The ends of the supported set (docs/reliability.md), each in an environment of its own that is made anew.
OLDEST_PYTHON ?= python3.11
NEWEST_PYTHON ?= python3.12

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all test-oldest test-newest bench lint types clean

help:
	@echo 'make demo      pretrain on simulated detector views, probe with 25% of the labels, write a report'
	@echo 'make test      lint, types and the fast tests'
	@echo 'make test-all  the same with the slow tests'
	@echo 'make test-oldest, make test-newest  the fast tests with the oldest and the newest packages that setup.cfg allows'
	@echo 'make bench     training and embedding throughput of the encoders'
	@echo 'make lint      ruff;  make types  mypy'
	@echo 'make env       only set up .venv (every target above does it first, once)'
	@echo 'make clean     remove caches and build leftovers; .venv, .venv-* and runs stay'

env: $(STAMP)

# pip brings uv, uv brings the rest: five times faster, and hard-linked from uv's cache, so a second clone costs no disk.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@set -e; \
	if ! $(PY) -c 'import pip; $(SUITABLE)' 2>/dev/null; then \
	    found=; \
	    for python in $(PYTHON); do \
	        if "$$python" -c '$(SUITABLE)' 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "error: gwtwins needs Python 3.11 or 3.12 with its venv module; tried: $(PYTHON)" \
	            "(make PYTHON=/path/to/python3.12)" >&2; exit 1; \
	    fi; \
	    echo "Setting up $(VENV) with $$("$$found" --version); the first time this fetches some gigabytes ..."; \
	    "$$found" -m venv --clear $(VENV); \
	fi; \
	$(PY) -m pip install --quiet --disable-pip-version-check '$(UV)'; \
	[ -t 2 ] && quiet= || quiet=--quiet; \
	$(PY) -m uv pip install $$quiet --python $(PY) --constraints constraints.txt --build-constraints constraints.txt \
	    --editable '.[dev,export]'; \
	rm -f $(VENV)/.installed-*; touch $@; \
	echo "$(VENV) is ready."

demo: env
	@set -e; out=runs/demo-$$(date +%Y%m%d-%H%M%S); \
	$(PY) train_ssl.py --config configs/demo.yaml --out $$out $(DEMO_ARGS); \
	$(PY) eval_probe.py --frac 0.25 --weights $$out $(DEMO_PROBE_ARGS); \
	seconds=$$(( $$(date +%s) - $(START) )); \
	test -f $$out/probe/report.html; \
	echo "Done in $$(( seconds / 60 )) min $$(( seconds % 60 )) s. The report: $$out/probe/report.html"

# Torch's threads wait by spinning, which on shared cores makes small operations ten times slower; tests let them sleep.
test test-all test-oldest test-newest: export OMP_WAIT_POLICY := passive
test test-all test-oldest test-newest: export GOMP_SPINCOUNT := 0
test test-all test-oldest test-newest: export OPENBLAS_NUM_THREADS := 1

# Two files of tests at a time.
PAIRWISE := --numprocesses 2 --dist loadfile

test: lint types
	$(PY) -m pytest -m 'not slow' $(PAIRWISE) $(PYTEST)

test-all: lint types
	$(PY) -m pytest $(PYTEST)

test-oldest: env
	"$(OLDEST_PYTHON)" -m venv --clear $(VENV)-oldest
	$(PY) -m uv pip install --quiet --python $(VENV)-oldest/bin/python --constraints constraints-oldest.txt \
	    --editable '.[dev,export]'
	$(VENV)-oldest/bin/python -m pytest -m 'not slow' $(PAIRWISE) $(PYTEST)

test-newest: env
	"$(NEWEST_PYTHON)" -m venv --clear $(VENV)-newest
	$(PY) -m uv pip install --quiet --upgrade --python $(VENV)-newest/bin/python --editable '.[dev,export]'
	$(PY) -m uv pip freeze --python $(VENV)-newest/bin/python
	$(VENV)-newest/bin/python -m pytest -m 'not slow' $(PAIRWISE) $(PYTEST)

bench: env
	$(PY) benchmarks/throughput.py $(BENCH)

lint: env
	$(PY) -m ruff check .

# The root folder is the package, so mypy sees it through a link of the package's name.
types: env
	@set -e; tree=$$(mktemp -d); trap 'rm -rf "$$tree"' EXIT; ln -s "$(CURDIR)" "$$tree/gwtwins"; \
	echo "$(PY) -m mypy $(ROOMS)"; cd "$$tree"; \
	MYPYPATH="$$tree" "$(CURDIR)/$(PY)" -m mypy --config-file "$(CURDIR)/pyproject.toml" \
	    --cache-dir "$(CURDIR)/.mypy_cache" $(ROOMS:%=gwtwins/%)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path './$(VENV)*' -prune -o -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
