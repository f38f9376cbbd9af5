# Everything below works from nothing but Python 3.11+, make and gcc. `make demo` and `make test` set up by themselves.
PYTHON ?= python3
UV := .tools/bin/uv
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
export PYTHONUNBUFFERED := 1

.PHONY: demo test test-cluster test-hosts test-servers test-gpu lint types setup lock clean

DEMO := demo-data

demo: setup  ## raw archive -> Parquet -> training -> NE -> predictions, on this machine
	rm -rf $(DEMO)
	$(BIN)/glefld synthesize --layout fld --count 4000 --output $(DEMO)/raw/fld
	$(BIN)/glefld ingest --dataset fld --source $(DEMO)/raw/fld --root $(DEMO)
	$(BIN)/glefld train --dataset fld --root $(DEMO) --name demo --input-size 96 --epochs 6
	$(BIN)/glefld infer --checkpoint $(DEMO)/runs/demo --input $(DEMO)/data/fld --split test \
		--output $(DEMO)/predictions --overlays 12
	@echo "pictures   $(DEMO)/predictions/_overlays"
	$(BIN)/glefld evaluate --dataset fld --root $(DEMO) --checkpoint $(DEMO)/runs/demo --split test \
		--output $(DEMO)/evaluation.json --report $(DEMO)/evaluation.html

test: setup lint types  ## lint, types and the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What the tests of whole systems start: an S3 server, a database, hosts in network namespaces, a browser and Prometheus.
SYSTEM := radosgw ceph-mon ceph-osd postgresql iproute2 chromium chromium-driver prometheus

test-cluster: setup  ## the jobs against real servers; as root with apt their system packages are installed first
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(SYSTEM) >/dev/null 2>&1; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(SYSTEM) \
		|| echo "apt could not install $(SYSTEM): tests that need what is absent are skipped"; \
	fi
	@$(MAKE) --no-print-directory --output-sync=target -j2 test-hosts test-servers

# Most of the time both wait for timeouts and for processes to start, so side by side they take little more than one.
HOSTS := $(addprefix tests/cluster/test_,hosts.py cluster_docs.py benchmark_jobs.py)

test-hosts: setup
	$(BIN)/python -m pytest $(HOSTS)

test-servers: setup
	$(BIN)/python -m pytest tests/cluster $(addprefix --ignore=,$(HOSTS))

test-gpu: setup  ## what only a GPU shows, with its figures
	$(BIN)/python -m pytest tests/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

setup: .venv/.installed

# The stamp names the requirements it was made from, so an edited file is installed and an unchanged one is not.
# The project itself is installed as this folder's path, for the command `glefld`: by default setuptools installs a finder,
# which each Python process would load (20 ms).
# Compiled once (20 s): under PYTHONDONTWRITEBYTECODE each of Ray's processes would compile all it imports again (5 s).
.venv/.installed: requirements.txt pyproject.toml $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	@touch $@

# Another uv: its version through the command that uv.txt begins with.
$(UV): uv.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --require-hashes --only-binary :all: --requirement uv.txt
	@touch $@

# With Google's and Azure's storage too: make lock EXTRAS="export gcs azure"
EXTRAS := export

lock: $(UV)  ## renew requirements.txt from pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--group dev $(addprefix --extra ,$(EXTRAS)) pyproject.toml --output-file requirements.txt

clean:
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache
