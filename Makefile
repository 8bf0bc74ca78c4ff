# Each target does its own set-up: it needs Python 3.10+ and make, nothing else. A second run installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART := output/quickstart
QUICKSTART_V2 := output/quickstart_v2
STAGES := output/stages
TEST_PROCESSES ?= 2
CURATE = $(BIN)/python -m minigpt4.curate

.DEFAULT_GOAL := help
.PHONY: help install quickstart quickstart-v2 stages demo test slow coverage torture check lint type format docs bench clean

ifeq ($(origin PYTHON)$(if $(wildcard $(BIN)/python),, absent),command line)
ifneq ($(shell $(PYTHON) -V 2>&1),$(shell $(BIN)/python -V))
$(error $(VENV) was made with $(shell $(BIN)/python -V), and PYTHON is $(shell $(PYTHON) -V 2>&1): rm -rf $(VENV), and the same command again)
endif
endif

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

$(BIN)/uv:
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python 3.10 or newer is needed; $(PYTHON) is ' \
		+ sys.version.split()[0] + '. Name another: make install PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# Without TORCH, torch is the package index's build, which on Linux brings CUDA; uv knows where its other builds are.
INSTALL = $(BIN)/uv pip install --python $(BIN)/python $(if $(TORCH),--torch-backend $(TORCH)) \
	--constraint constraints.txt --editable
# Sizes by `du -sm` of a complete .venv on Linux, with Python 3.11: 6.4 GB, of it 4.6 GB CUDA and triton.
ifeq ($(TORCH)$(shell uname -s)$(wildcard /dev/nvidia0),Linux)
SIZE = up to 6.4 GB. No NVIDIA GPU was found: without CUDA it is 1.8 GB (Ctrl-C, then: rm -rf $(VENV); make install TORCH=cpu)
else
SIZE = $(if $(filter cpu,$(TORCH)),up to 1.8 GB,up to 6.4 GB)
endif
FAILED = $(if $(TORCH),echo "TORCH=$(TORCH) takes torch from PyTorch's own package index. Where that cannot be reached: \
make install without TORCH (6.4 GB); or install torch and torchvision yourself (docs/install.md: By hand)" >&2;)
define install
@echo "Installing into $(VENV): $(SIZE)"
@echo '$(INSTALL) ".[$(EXTRAS)]"'
@$(INSTALL) ".[$(EXTRAS)]" || { $(FAILED) exit 1; }
endef

$(VENV)/.installed: EXTRAS = train,eval
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/uv
	$(install)
	@touch $@

$(VENV)/.installed-dev: EXTRAS = dev
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/uv
	$(install)
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed-dev ## Make .venv with everything a developer needs (no GPU: TORCH=cpu saves 4.6 GB)

quickstart: $(VENV)/.installed ## Draw scenes, prepare, train the tiny model, evaluate every checkpoint (about two minutes)
	rm -rf $(QUICKSTART)
	$(BIN)/python dataset/make_scenes.py --out $(QUICKSTART)/scenes --train 1000 --val 100 --test 200 --seed 0
	$(BIN)/python prepare_flickr30k.py --annotations $(QUICKSTART)/scenes/flickr_annotations_30k.csv \
		--images $(QUICKSTART)/scenes/images --out $(QUICKSTART)/scenes/flickr30k.json
	$(BIN)/torchrun --nproc-per-node 1 train.py --cfg-path train_configs/quickstart.yaml
	$(BIN)/python eval_scripts/eval_flickr30k.py --cfg-path eval_configs/quickstart.yaml \
		--ckpt minigpt4/assets/tiny/stage1.pth $(foreach n,0 1 2 3 4,$(QUICKSTART)/train/checkpoint_$(n).pth)

quickstart-v2: $(VENV)/.installed ## The tiny MiniGPT-v2 learns five tasks about drawn scenes, boxes among them (less than eight minutes)
	rm -rf $(QUICKSTART_V2)
	$(BIN)/python dataset/make_scenes.py --out $(QUICKSTART_V2)/scenes --train 2000 --val 50 --test 0 --questions
	$(BIN)/python dataset/make_scenes.py --out $(QUICKSTART_V2)/test --train 0 --val 0 --test 200 --first 2050 --questions
	$(BIN)/python dataset/make_pope.py --objects $(QUICKSTART_V2)/test/scenes.json \
		--out $(QUICKSTART_V2)/test/questions/pope.jsonl
	$(BIN)/torchrun --nproc-per-node 1 train.py --cfg-path train_configs/quickstart_v2.yaml
	$(BIN)/python eval_scripts/eval_flickr30k.py --cfg-path eval_configs/quickstart_v2.yaml

stages: $(VENV)/.installed ## Both stages from nothing on drawn scenes, with stage 2's data made on the way (about two minutes)
	rm -rf $(STAGES)
	$(BIN)/python dataset/make_shards.py --out $(STAGES)/data --scenes 2580 --seed 0
	$(BIN)/torchrun --nproc-per-node 1 train.py --cfg-path train_configs/scenes_stage1.yaml --options \
		datasets.laion.shards='$(STAGES)/data/laion/laion_dataset/*.tar' \
		datasets.cc_sbu.shards='$(STAGES)/data/cc_sbu/cc_sbu_dataset/*.tar' run.run_dir=$(STAGES)/train1
	cp $(STAGES)/train1/checkpoint_3.pth $(STAGES)/stage1.pth
	$(CURATE) describe --cfg-path train_configs/scenes_curation.yaml
	$(CURATE) refine --cfg-path train_configs/scenes_curation.yaml
	$(CURATE) filter --cfg-path train_configs/scenes_curation.yaml
	$(CURATE) review --accept-all --cfg-path train_configs/scenes_curation.yaml
	$(CURATE) export --cfg-path train_configs/scenes_curation.yaml
	$(BIN)/torchrun --nproc-per-node 1 train.py --cfg-path train_configs/scenes_stage2.yaml
	cp $(STAGES)/train2/checkpoint_2.pth $(STAGES)/stage2.pth
	$(BIN)/python dataset/make_scenes.py --out $(STAGES)/scenes --train 0 --val 0 --test 200 --seed 7
	$(BIN)/python prepare_flickr30k.py --annotations $(STAGES)/scenes/flickr_annotations_30k.csv \
		--images $(STAGES)/scenes/images --out $(STAGES)/scenes/flickr30k.json
	$(BIN)/python eval_scripts/eval_flickr30k.py --cfg-path eval_configs/scenes_stages.yaml \
		--ckpt $(STAGES)/stage1.pth $(STAGES)/stage2.pth

demo: $(VENV)/.installed-dev ## Open the chat page on the tiny model
	$(BIN)/python demo.py

PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev ## Run the tests but for the slow ones (a part: TESTS=tests/models)
	$(PYTEST) -m "not slow" $(TESTS)

slow: $(VENV)/.installed-dev ## Run the tests that take ten seconds or more each
	$(PYTEST) -m slow $(TESTS)

coverage: $(VENV)/.installed-dev ## Run all tests and count the lines of the package that they run
	$(PYTEST) --cov=minigpt4 --cov-report=term:skip-covered $(TESTS)

check: lint type test slow ## Everything that has to pass before a change is merged

torture: $(VENV)/.installed-dev ## Kill, fill and damage everything, hundreds of times (about 40 minutes); FAULTS='--seed 1'
	$(BIN)/python -m tests.faults $(FAULTS)

lint: $(VENV)/.installed-dev ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-dev ## Types
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Rewrite files in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-dev ## Make a site of docs/ in build/docs, with every link checked
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(VENV)/.installed-dev ## Measure steps, captions, loading, images, the cache and the server beside what people use (half an hour)
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.train_step --dtype bfloat16
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.prefix
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.chat
	$(BIN)/python -m benchmarks.serve --soak 2000
	$(BIN)/python -m benchmarks.spinning
	$(BIN)/python -m benchmarks.scale
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m benchmarks.gradients

clean: ## Remove what was built and measured
	rm -rf output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
