# Another Python than `python3`: make serve PYTHON=python3.13
PYTHON ?= python3
# Arguments for the verb's command: make serve ARGS='--port 9000', make test ARGS='-k login'
ARGS =

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Node trusts a list of its own; the machine's has the certificates of a company's proxy as well.
export NODE_EXTRA_CA_CERTS ?= $(wildcard /etc/ssl/certs/ca-certificates.crt)

# An upgrade of the system can take away the Python that .venv was made with; then .venv is made anew.
$(shell [ -x .venv/bin/python ] || rm -rf .venv)

.DELETE_ON_ERROR:
.PHONY: help serve test quick browser-test client-test faults coverage bench lint schema lock newest clean

help: ## say what there is (`make` alone does this too)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

serve: .venv/.installed ## start the server on http://127.0.0.1:8000
	.venv/bin/taskflow serve $(ARGS)

test: .venv/.installed-test ## run the tests, on SQLite and on a PostgreSQL and a Redis that they start themselves
	.venv/bin/pytest $(ARGS)

quick: .venv/.installed-test ## run the quick tests: SQLite only, few examples, no second process
	.venv/bin/pytest --quick --numprocesses auto $(ARGS)

browser-test: .venv/.installed-test ## run the tests that need a browser (Chromium and ChromeDriver)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	  || { echo 'Chromium or ChromeDriver is missing. On Debian: apt-get install chromium chromium-driver' >&2; exit 1; }
	.venv/bin/pytest -m browser $(ARGS)

client-test: .venv/.installed-test docs/recipes/node_modules/.package-lock.json ## run docs/recipes in Node, through faults
	.venv/bin/pytest tests/clients -m clients $(ARGS)

faults: .venv/.installed-test ## ten minutes of faults under load, and a verdict
	TASKFLOW_FAULT_SECONDS=600 .venv/bin/pytest tests/faults -s $(ARGS)

coverage: .venv/.installed-coverage ## say which lines and branches the quick tests do not reach
	.venv/bin/coverage erase
	.venv/bin/coverage run -m pytest --quick --numprocesses auto $(ARGS)
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

bench: .venv/.installed-bench .bench/.installed ## a quarter of an hour of measuring beside PostGraphile, Mercurius, Go and others
	.venv/bin/python -m bench.serving $(ARGS)

lint: .venv/.installed-lint ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

schema: .venv/.installed ## write schema.graphql anew
	.venv/bin/taskflow export-schema $(ARGS)

# With the oldest Python that is supported, which needs the most packages: make lock PYTHON=/usr/bin/python3.11
lock: ## write constraints.txt: the newest versions within the bounds of pyproject.toml
	rm -rf .lock
	$(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet --editable '.[test,bench,coverage,lint]'
	@{ echo '# Made by `make lock`. Exact versions of all that is installed; pyproject.toml has the bounds.'; \
	  .lock/bin/pip freeze --exclude-editable; } > constraints.txt
	rm -rf .lock

newest: ## run the quick tests with the newest versions within the bounds of pyproject.toml
	rm -rf .newest
	$(PYTHON) -m venv .newest
	.newest/bin/pip install --quiet --editable '.[test]'
	.newest/bin/pytest --quick --numprocesses auto $(ARGS)

clean: ## remove .venv and caches; the data under .taskflow stays
	rm -rf .venv .lock .newest .bench bench/peers/node_modules docs/recipes/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps let a second run start at once: pip runs again only when pyproject.toml or
# constraints.txt has changed.
.venv/.installed: .venv/pyvenv.cfg pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-test: .venv/pyvenv.cfg pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

.venv/.installed-bench: .venv/pyvenv.cfg pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	@touch $@

.venv/.installed-coverage: .venv/pyvenv.cfg pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test,coverage]'
	@touch $@

.bench/.installed: bench/peers/install bench/peers/package.json bench/peers/package-lock.json bench/peers/golang/main.go
	bench/peers/install
	@touch $@

# The types of the tests and benches are checked too, so what they import is needed here.
.venv/.installed-lint: .venv/pyvenv.cfg pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test,bench,lint]'
	@touch $@

docs/recipes/node_modules/.package-lock.json: docs/recipes/package-lock.json
	@command -v npm >/dev/null || { echo 'Node with npm is missing. On Debian: apt-get install nodejs npm' >&2; exit 1; }
	npm ci --prefix docs/recipes --ignore-scripts --no-audit --no-fund
	@touch $@

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed. Name one: make $(MAKECMDGOALS) PYTHON=python3.13' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo '$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Installing into .venv; this takes up to a minute, the first time only.'
	$(PYTHON) -m venv .venv
