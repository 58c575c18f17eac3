# make train [CIFAR10=PATH]   the main job: CIFAR-10 to betons, ResNet-20 trained, a table and curves
# make test                   the tests; make test-fast: without SLURM and long trainings
# make test-gpu DATA=.. OUT=..   the same trainings on a GPU, benchmarks/gpu.sh, and one report of both
# make check                  ruff and mypy
# make docs                   the pages as a site, into build/site
# make cluster                a shell on a SLURM of two nodes on this machine, where `sbatch slurm/resnet110.sh` works
# make ffcv-wheel             FFCV as a wheel that needs no compiler, into wheels/
# Each sets up what it needs first (launch/setup.sh), once: `make train` without what only tests need.

RUN := .venv/bin/dist-resnet

.PHONY: train test test-fast test-gpu check setup docs ffcv-wheel cluster

setup: .venv/.ready-tests

.venv/.ready: pyproject.toml launch/setup.sh
	@launch/setup.sh

.venv/.ready-tests: pyproject.toml launch/setup.sh
	@launch/setup.sh check,test

train: .venv/.ready
	@began=$$(date +%s); took() { echo "== $$1: $$(($$(date +%s) - began)) s" >&2; began=$$(date +%s); }; \
	if [ ! -e data/cifar10/manifest.json ]; then \
	  $(RUN) prepare cifar10 --val 0 $(if $(CIFAR10),--source "$(CIFAR10)"); code=$$?; \
	  if [ $$code = 69 ]; then \
	    printf '\n%s\n%s\n%s\n\n' \
	      '*** CIFAR-10 cannot be had: training on the generated data set `shapes` instead. ***' \
	      '*** Its accuracy says nothing about CIFAR-10. For the real thing:               ***' \
	      '***   make train CIFAR10=<cifar-10-python.tar.gz, or a folder of the images>    ***' >&2; \
	    [ -e data/shapes/manifest.json ] || $(RUN) prepare shapes || exit; \
	    took data; $(RUN) train configs/quickstart.yaml --data.dir data/shapes --data.dataset shapes || exit; \
	    took training; exit; \
	  fi; \
	  [ $$code = 0 ] || exit $$code; \
	  took data; \
	fi; \
	$(RUN) train configs/quickstart.yaml && took training

test: .venv/.ready-tests
	@.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-fast: .venv/.ready-tests
	@.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not slow'

GPU_TESTS := stream checkpoint fast_paths training equal_trainings virtual_workers speedrun imagenet

test-gpu: .venv/.ready-tests
	@mkdir -p "$(OUT)"
	-.venv/bin/python -m pytest --device cuda -n 0 $(GPU_TESTS:%=tests/test_%.py) 2>&1 | tee "$(OUT)/tests.txt"
	benchmarks/gpu.sh "$(DATA)" "$(OUT)"

check: .venv/.ready-tests
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

docs: .venv/.ready
	@[ -x .venv/bin/mkdocs ] || .venv/bin/pip install --quiet -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict  # with --quiet nothing would be strict

ffcv-wheel: .venv/.ready
	@.venv/bin/pip install --quiet -e '.[wheel]'
	@rm -rf build/ffcv && .venv/bin/pip wheel --quiet --no-deps --no-binary ffcv --wheel-dir build/ffcv ffcv==1.0.2
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/auditwheel repair --wheel-dir wheels build/ffcv/ffcv-*.whl

cluster: .venv/.ready
	@.venv/bin/python slurm/local_cluster.py
