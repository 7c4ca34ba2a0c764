# Halka. `make` builds build/cpu/halka; `make help` lists the targets.
CC       ?= gcc
MPICC    ?= mpicc
BUILD    ?= build/cpu
PREFIX   ?= /usr/local
PYTHON   ?= python3
OPT      ?= -O3
ifneq ($(CUDA),)
$(error CUDA=1 is reserved: the CUDA backend is not part of this version)
endif
ifneq ($(ASAN),)
BUILD    := build/asan
OPT      := -O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer -Wno-format-truncation
endif

PACKAGES := libconfig jansson libpcre2-8 libutf8proc libxxhash libcrypto hwloc
CFLAGS   += -std=c11 -D_GNU_SOURCE $(OPT) -g -fopenmp -Wall -Wextra -Werror -MMD -MP -I. \
            $(shell pkg-config --cflags $(PACKAGES))
LDLIBS   += $(shell pkg-config --libs $(PACKAGES)) -ldnnl -lm
# OpenMPI's own wrapper knows its libraries; the file suffix alone carries instruction-set flags.
ISA_avx2       := -mavx2 -mfma -mf16c
ISA_avx512     := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
ISA_avx512bf16 := $(ISA_avx512) -mavx512bf16

LIB_SRC  := $(sort $(wildcard kernels/*.c kernels/reference/*.c kernels/cpu/*.c partition/*.c dist/*.c model/*.c) \
              $(filter-out launcher/main.c,$(wildcard launcher/*.c)))
APP_SRC  := launcher/main.c
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
APP_OBJ  := $(APP_SRC:%.c=$(BUILD)/%.o)
LIB      := $(BUILD)/libhalka.a
TESTS    := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/unit/test_*.c tests/mpi/test_*.c)))
BENCHES  := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/bench/bench_*.c)))
TEST_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard tests/common/*.c)))
TEST_LIB := $(BUILD)/libtests.a

all: $(BUILD)/halka
$(BUILD)/halka: $(APP_OBJ) $(LIB)
	$(MPICC) $(CFLAGS) -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(LIB): $(LIB_OBJ)
$(TEST_LIB): $(TEST_OBJ)
$(LIB) $(TEST_LIB):
	@rm -f $@
	$(AR) rcs $@ $^
isa = $(foreach s,avx2 avx512 avx512bf16,$(if $(filter %_$(s),$(basename $(1))),$(ISA_$(s))))
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(MPICC) $(CFLAGS) $(call isa,$<) -c -o $@ $<
$(TESTS) $(BENCHES): $(BUILD)/%: $(BUILD)/%.o $(TEST_LIB) $(LIB)
	$(MPICC) $(CFLAGS) -o $@ $^ $(LDFLAGS) $(LDLIBS) -lcmocka
.SECONDARY:

tests: $(TESTS)
benches: $(BENCHES)
test: all tests
	scripts/test.sh $(BUILD)
demo: all
	scripts/demo.sh $(BUILD)/halka
bench: all benches
	scripts/bench.sh $(BUILD)
check:
	scripts/check.sh
format:
	clang-format -i $$(git ls-files '*.c' '*.h')
fuzz:
	scripts/fuzz.sh
install: all
	install -D $(BUILD)/halka $(DESTDIR)$(PREFIX)/bin/halka
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
	@echo "make format | ASAN=1 | install PREFIX=/usr/local | clean"
.PHONY: all tests benches test demo bench check format fuzz install clean flags libraries help
-include $(LIB_OBJ:.o=.d) $(APP_OBJ:.o=.d) $(TESTS:=.d) $(BENCHES:=.d) $(TEST_OBJ:.o=.d)
