# Everything runs in environments of its own, made when missing or out of date (plain pip, nothing global).
#   make demo   train the tiny reasoner with SIRI on this machine and draw the report
#   make test   run all tests          make lint   ruff check and format, types
#   make test-vllm   the tests with a real vLLM, on the CPU, in .venv-vllm (3.5 GB)
#   make torture   what breaks a run, at length: kills, full disks, hostile answers and files; what has not begun after
#                  two hours is left out and named (MINUTES=...); SHARE=10: a tenth of each
#   make docs   the documentation site, in build/site
#   make bench  microbenchmarks        make clean  remove .venv* and caches (runs/ stays)
#   make newest, make oldest   the tests with the newest and the oldest versions that pyproject.toml admits (TESTS=...)
#   make lock   write constraints*.txt anew (UPGRADE=1: with the newest of everything)
#   make sbom   build/sbom.json (CycloneDX) and build/licences.md: what .venv is made of
#   make ranges   resolve pyproject.toml's ranges with each vLLM and each torch

# the Python of .venv, or the first from 3.11 to 3.13, 3.11 preferred: torch's CPU build is found there without a detour
FOUND := $(shell for p in $(or $(PYTHON),.venv/bin/python python3.11 python3.12 python3.13 python3); do \
	$$p -S -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) or print(sys.executable))' 2>/dev/null && \
	break; done)
ENVIRONMENTS := .venv .venv-vllm .venv-tools .venv-newest .venv-oldest
TESTS ?=

.PHONY: demo test test-vllm torture lint docs bench clean newest oldest lock sbom ranges $(ENVIRONMENTS)

demo: .venv
	.venv/bin/siri train demo --auto-resume

# files side by side, a process for each core; then what measures time, alone
test: .venv
	.venv/bin/python -m pytest --durations=20 -m "not quiet" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	.venv/bin/python -m pytest -m quiet

# a server computes on one core, and so does a trainer: two files at a time
test-vllm: .venv-vllm
	OMP_NUM_THREADS=1 SIRI_TEST_VLLM=1 .venv-vllm/bin/python -m pytest tests/vllm --durations=10 -n logical --maxprocesses 2 \
		--dist loadfile --no-loadscope-reorder

# -m torture also takes the quick tests beside the long ones, so that the table at the end is whole
torture: .venv
	@$(FOUND) -S .ci/environment.py .venv torture
	.venv/bin/python -m pytest --torture --minutes $(or $(MINUTES),120) --share $(or $(SHARE),100) -m torture -n $(or $(JOBS),logical) --maxprocesses 4 \
		--dist loadfile --no-loadscope-reorder

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright

# warnings are errors: a broken link, a page that the navigation lacks, a name without documentation
docs: .venv
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

bench: .venv
	.venv/bin/python -m pytest bench --benchmark-enable --benchmark-only

newest oldest: %: .venv-%
	@$(FOUND) -S .ci/range_end.py .venv-$@ $(TESTS)

lock: .venv-tools
	.venv-tools/bin/python .ci/lock.py $(if $(UPGRADE),--upgrade)

sbom: .venv
	.venv/bin/python .ci/sbom.py build

ranges: .venv-tools
	.venv-tools/bin/python .ci/lock.py --ranges

# always asked, and a few hundredths of a second when there is nothing to do
$(ENVIRONMENTS):
	@test -n "$(FOUND)" || { echo "make: no Python 3.11 to 3.13 found; install one or set PYTHON=..." >&2; exit 2; }
	@$(FOUND) -S .ci/environment.py $@

clean:
	rm -rf $(ENVIRONMENTS) build dist *.egg-info kernels/build kernels/*.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
