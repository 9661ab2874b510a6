# setup: a virtual environment with everything. The other targets make it first where it is missing.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-all check bench clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt tests/wheels.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[convert,dev]"
	$(BIN)/pip download --quiet --no-deps --dest $(VENV)/wheels -r tests/wheels.txt
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

# mypy reads a regular install, because the import names of two folders are set by pyproject.toml.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml

bench: setup
	$(BIN)/python benchmarks/startup.py --save benchmarks/results/startup.json
	$(BIN)/python benchmarks/convert_speed.py --folder build/bench --save benchmarks/results/convert_speed.json
	$(BIN)/python benchmarks/cpu_latency.py build/bench/tflite_converter.tflite build/bench/out/model.tflite \
		--save benchmarks/results/cpu_latency.json
	$(BIN)/python benchmarks/coverage_bridge.py --save benchmarks/results/coverage_bridge.json
	$(BIN)/python benchmarks/coverage_qat.py --save benchmarks/results/coverage_qat.json
	$(BIN)/python benchmarks/compression_quality.py --save benchmarks/results/compression_quality.json
	$(BIN)/python benchmarks/qat_convert_speed.py --save benchmarks/results/qat_convert_speed.json
	$(BIN)/python benchmarks/low_rank_quality.py --save benchmarks/results/low_rank_quality.json
	$(BIN)/python benchmarks/low_rank_latency.py --save benchmarks/results/low_rank_latency.json
	$(BIN)/python benchmarks/low_rank_models.py --save benchmarks/results/low_rank_models.json
	$(BIN)/python benchmarks/recurrent.py --save benchmarks/results/recurrent.json
	$(BIN)/python benchmarks/distillation.py --save benchmarks/results/distillation.json

clean:
	rm -rf $(VENV) build demo *.egg-info
