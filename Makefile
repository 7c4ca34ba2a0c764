# Halka. `make` builds build/cpu/halka; `make help` lists the targets.
CC       ?= gcc
MPICC    ?= mpicc
BUILD    ?= build/cpu
PREFIX   ?= /usr/local
PYTHON   ?= python3
OPT      ?= -O3
ifneq ($(CUDA),)
BUILD    := build/cuda
endif
ifneq ($(ASAN),)
BUILD    := build/asan
OPT      := -O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer -Wno-format-truncation
endif

PACKAGES := libconfig libmicrohttpd jansson libpcre2-8 libutf8proc libxxhash libcrypto hwloc
CFLAGS   += -std=c11 -D_GNU_SOURCE $(OPT) -g -fopenmp -Wall -Wextra -Werror -MMD -MP -I. \
            $(shell pkg-config --cflags $(PACKAGES))
LDLIBS   += $(shell pkg-config --libs $(PACKAGES)) -ldnnl -lm
# CUDA=1: one shared library, so that the tests do not each carry all kernels; a folder `lib` beside
# the program is searched for what the machine lacks (make CUDA=1 bundle).
NVCC      ?= nvcc
CUDA_HOME ?= $(patsubst %/bin/,%,$(dir $(shell readlink -f "$$(command -v $(NVCC))" 2>/dev/null)))
NVFLAGS   += -std=c++17 -O3 -lineinfo -I. --expt-relaxed-constexpr \
             -Xcompiler -fPIC,-Wall,-Wextra,-Wno-missing-field-initializers,-Werror --resource-usage
CUDA_ANY  := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
CUDA_sm90a := -gencode arch=compute_90a,code=sm_90a
ifneq ($(CUDA),)
CFLAGS += -fPIC -I$(CUDA_HOME)/include
LDLIBS += -L$(CUDA_HOME)/lib64 -lnccl -lcublas -lcublasLt -lcudart -lstdc++
RPATH := -Wl,--disable-new-dtags,-rpath,'$$ORIGIN:$$ORIGIN/lib:$$ORIGIN/../lib:$$ORIGIN/../..:$$ORIGIN/../../lib'
endif
# OpenMPI's own wrapper knows its libraries; the file suffix alone carries instruction-set flags.
ISA_avx2       := -mavx2 -mfma -mf16c
ISA_avx512     := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
ISA_avx512bf16 := $(ISA_avx512) -mavx512bf16

# What a build without CUDA has in place of the cuda backend and NCCL, and the other way round.
WITHOUT_CUDA := kernels/without_cuda.c dist/without_nccl.c
ONLY_CUDA    := dist/comm_nccl.c dist/comm_nccl_open.c
LIB_SRC  := $(sort $(wildcard kernels/*.c kernels/reference/*.c kernels/cpu/*.c partition/*.c dist/*.c model/*.c) \
              $(filter-out launcher/main.c,$(wildcard launcher/*.c)))
LIB_SRC  := $(filter-out $(if $(CUDA),$(WITHOUT_CUDA),$(ONLY_CUDA)),$(LIB_SRC))
CUDA_SRC := $(if $(CUDA),$(sort $(wildcard kernels/cuda/*.cu)))
APP_SRC  := launcher/main.c
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o) $(CUDA_SRC:%.cu=$(BUILD)/%.o)
APP_OBJ  := $(APP_SRC:%.c=$(BUILD)/%.o)
LIB      := $(BUILD)/libhalka.$(if $(CUDA),so,a)
TESTS    := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/unit/test_*.c tests/mpi/test_*.c tests/cli/*.c)))
BENCHES  := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/bench/bench_*.c)))
TEST_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard tests/common/*.c)))
TEST_LIB := $(BUILD)/libtests.a

all: $(BUILD)/halka
$(BUILD)/halka: $(APP_OBJ) $(LIB)
	$(MPICC) $(CFLAGS) -o $@ $^ $(LDFLAGS) $(RPATH) $(LDLIBS)
%.a:
	@rm -f $@
	$(AR) rcs $@ $^
%.so:
	$(MPICC) -shared -fopenmp -Wl,-soname,$(@F) -o $@ $^ $(LDFLAGS) $(RPATH) $(LDLIBS)
$(LIB): $(LIB_OBJ)
$(BUILD)/launcher/service_page.o: launcher/service_page.html
$(TEST_LIB): $(TEST_OBJ)
isa = $(foreach s,avx2 avx512 avx512bf16,$(if $(filter %_$(s),$(basename $(1))),$(ISA_$(s))))
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(MPICC) $(CFLAGS) $(call isa,$<) -c -o $@ $<
# The compiler's report of registers, stack frames and spills stays beside the object.
$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) $(or $(CUDA_$(lastword $(subst _, ,$*))),$(CUDA_ANY)) -MMD -MP -MF $(@:.o=.d) -c -o $@ $< 2>$@.report || \
	    { cat $@.report; rm -f $@; exit 1; }
$(TESTS) $(BENCHES): $(BUILD)/%: $(BUILD)/%.o $(TEST_LIB) $(LIB)
	$(MPICC) $(CFLAGS) -o $@ $^ $(LDFLAGS) $(RPATH) $(LDLIBS) -lcmocka
.SECONDARY:

tests: $(TESTS) $(if $(CUDA),$(BUILD)/liblaunches.so)
benches: $(BENCHES)
test: all tests
	scripts/test.sh $(BUILD)
gpu-test:
	$(MAKE) CUDA=1 all tests
	scripts/gpu_test.sh --build build/cuda
demo: all
	scripts/demo.sh $(BUILD)/halka
bench: all benches
	scripts/bench.sh $(BUILD)
check:
	scripts/check.sh
format:
	clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')
fuzz:
	scripts/fuzz.sh
# The small libraries that a GPU machine may lack, beside the program: build/cuda can be copied there.
BUNDLED := config|microhttpd|gnutls|p11-kit|idn2|unistring|tasn1|nettle|hogweed|gmp|ffi|jansson|pcre2-8|utf8proc|xxhash|crypto|hwloc|dnnl|OpenCL|udev|cmocka
bundle: all
	@mkdir -p $(BUILD)/lib
	ldd $(BUILD)/halka $(wildcard $(BUILD)/tests/unit/test_fp8) | awk '/=> \// { print $$3 }' | sort -u | \
	    grep -v '^$(CURDIR)/' | grep -E '/lib($(BUNDLED))[.-]' | xargs -r -I{} cp -L {} $(BUILD)/lib/
# Libraries that record what runs on a GPU: when (by CUPTI, part of the CUDA toolkit; scripts/plot_timeline.sh
# draws it), and which of the kernels.
timeline: $(BUILD)/libtimeline.so
$(BUILD)/libtimeline.so $(BUILD)/liblaunches.so: $(BUILD)/lib%.so: tests/bench/%.c
	@mkdir -p $(@D)
	$(CC) $(filter-out -MMD -MP,$(CFLAGS)) -fPIC -shared -I$(CUDA_HOME)/include -o $@ $< -L$(CUDA_HOME)/lib64 -Wl,--as-needed -lcupti
install: all
	install -D $(BUILD)/halka $(DESTDIR)$(PREFIX)/bin/halka
	$(if $(CUDA),install -D $(LIB) $(DESTDIR)$(PREFIX)/lib/$(notdir $(LIB)))
	install -d $(DESTDIR)$(PREFIX)/share/halka
	cp -r configs $(DESTDIR)$(PREFIX)/share/halka/
clean:
	rm -rf build
# The compiler's flags for one file, and the libraries: for scripts/check.sh and scripts/fuzz.sh.
flags:
	@echo $(CFLAGS) $(call isa,$(FILE))
libraries:
	@echo $(LDLIBS)
help:
	@echo "make            build/cpu/halka"
	@echo "make demo       fetch the demo model and read a long document on two ranks"
	@echo "make test       every test;  make check  lint;  make bench  speed;  make fuzz  parsers, 60 s each"
	@echo "make gpu-test   tests on this machine's GPU, with CUDA=1"
	@echo "make CUDA=1     build/cuda/halka;  make CUDA=1 bundle  a folder for machines that lack libraries"
	@echo "make format | ASAN=1 | install PREFIX=/usr/local | clean"
.PHONY: all tests benches test gpu-test demo bench check format fuzz bundle timeline install clean flags libraries help
-include $(LIB_OBJ:.o=.d) $(APP_OBJ:.o=.d) $(TESTS:=.d) $(BENCHES:=.d) $(TEST_OBJ:.o=.d)
