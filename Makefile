# make export TARGET=cpu      the whole job: bundle and report in out/<recipe>/<target>/;  LATENCY=0.5x: pruned to that
#   COMPRESS_ONLY=1 MODEL=net.py:build WEIGHTS=net.pth DATA=images/ (or UNLABELLED=images/): a model that is trained already
# make select DOMAIN=solar    pretrained models ranked for the pictures and the target, before any training
# make check-data             examines the pictures before training;  make adapt: fine-tuning alone
# make gate TARGET=cpu        candidate against the accepted baseline;  make accept TARGET=cpu: the candidate becomes it
# make test                   all tests, with the share of lines that they run;  make check: format, lint, types, fast tests
PYTHON ?= python3
TARGET ?= cpu
RECIPE ?= $(if $(COMPRESS_ONLY),compress,$(if $(DATA),image-folder,digits))
OUT ?= out
SUBJECT = $(if $(DATA),--data "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(DOMAIN),--domain "$(DOMAIN)") \
        $(if $(MODEL),--model "$(MODEL)") $(if $(IMAGE_SIZE),--image-size "$(IMAGE_SIZE)")
FLAGS = $(SUBJECT) \
        $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) \
        $(if $(BALANCE),--balance $(BALANCE)) $(if $(ON_CORRUPT),--on-corrupt $(ON_CORRUPT))
PRUNING = $(if $(RATIO),--ratio $(RATIO)) $(if $(LATENCY),--latency "$(LATENCY)") \
        $(if $(RESOLUTION),--resolution $(RESOLUTION)) $(if $(LOCK),--lock "$(LOCK)")$(if $(RELEASE), --release $(RELEASE))
TRAINED = $(if $(COMPRESS_ONLY),--compress-only) $(if $(LABELS),--labels "$(LABELS)") \
        $(if $(UNLABELLED),--unlabelled "$(UNLABELLED)")
BIN = .venv/bin
READY = .venv/.ready

.DELETE_ON_ERROR:
.PHONY: export adapt check-data select bench gate accept test check lint targets pretrain clean

export: $(READY)
	@$(BIN)/toolchain export --target "$(TARGET)" --recipe "$(RECIPE)" --out "$(OUT)" $(FLAGS) $(PRUNING) $(TRAINED)

adapt: $(READY)
	@$(BIN)/toolchain adapt --recipe "$(RECIPE)" --out "$(OUT)" $(FLAGS)

check-data: $(READY)
	@$(BIN)/toolchain check-data --recipe "$(RECIPE)" --out "$(OUT)" $(SUBJECT) $(if $(SOURCE),--source "$(SOURCE)")

select: $(READY)
	@$(BIN)/toolchain select --target "$(TARGET)" --out "$(OUT)" $(if $(DOMAIN),--domain "$(DOMAIN)") \
        $(if $(DATA),--data "$(DATA)") $(if $(IMAGE_SIZE),--image-size "$(IMAGE_SIZE)") \
        $(if $(CANDIDATES),--candidates "$(CANDIDATES)") $(if $(LAYERS),--layers) \
        $(if $(ON_CORRUPT),--on-corrupt $(ON_CORRUPT))

bench: $(READY)
	@$(BIN)/toolchain bench --out "$(OUT)" $(if $(BUNDLES),$(BUNDLES),$(OUT)/$(RECIPE)/$(TARGET)/bundle)

gate: $(READY)
	@$(BIN)/toolchain gate --target "$(TARGET)" --recipe "$(RECIPE)" --out "$(OUT)" $(if $(DATA),--data "$(DATA)") \
        $(if $(REFERENCE),--reference "$(REFERENCE)")

accept: $(READY)
	@$(BIN)/toolchain accept --target "$(TARGET)" --recipe "$(RECIPE)" --out "$(OUT)" $(if $(URI),--uri "$(URI)") \
        $(if $(DATA),--data "$(DATA)")

targets: $(READY)
	@$(BIN)/toolchain targets

check: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=
	@echo "coverage: $$($(BIN)/coverage report --format=total) % of the lines of toolchain/ (coverage report lists them by file)"

pretrain: $(READY)
	$(BIN)/python scripts/pretrain_zoo.py --out "$(OUT)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[onnxruntime,openvino,dev]"
	@touch $(READY)

clean:
	rm -rf .venv out build dist
