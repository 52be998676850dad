# On a fresh machine with Python >= 3.10, git and make:
#   make train   sets up, makes a dataset of small videos, trains on it, tests and reports
#   make test    sets up and runs the fast tests
VENV ?= .venv
PYTHON ?= python3
TEST_JOBS ?= 2
PY := $(VENV)/bin/python
STAMP := $(VENV)/.video_rs_is_set_up
VENV_TF ?= .venv-tf
TESTS_TF ?= tf and not exhaustive
STAMP_TF := $(VENV_TF)/.video_rs_is_set_up
VENV_XLA ?= .venv-xla
TESTS_XLA ?= xla and not exhaustive
STAMP_XLA := $(VENV_XLA)/.video_rs_is_set_up

define RESULTS
import json
print("== Top-1 accuracy on the test split; chance is 12.5 %")
for run, text in {"motion_rs": "clips of 16 frames", "motion_rs_one_frame": "single frames"}.items():
    with open(f"runs/{run}/test/metrics.json") as file:
        print(f"   {text:<20}{100 * json.load(file)['top1']:5.1f} %   runs/{run}/test/report.html")
endef
export RESULTS

.PHONY: help setup train train-one-frame test test-slow test-tf test-xla test-all lint
help:
	@echo "make setup            create $(VENV) and install this package with the tested versions (once)"
	@echo "make train            set up, make data/motion, train motion_rs and its one-frame twin, test both"
	@echo "make train-one-frame  the same network on single frames only: it must not learn the motion"
	@echo "make test             set up and run the fast tests: under five minutes on two cores"
	@echo "make test-slow        the slow tests: under a quarter of an hour on two cores"
	@echo "make test-tf          create $(VENV_TF) with TensorFlow and compare whole networks with its own"
	@echo "make test-xla         create $(VENV_XLA) with torch_xla and train on XLA's CPU device"
	@echo "make test-all         every test, also the exhaustive ones; over an hour on two cores"
	@echo "make lint             ruff check and ruff format --check"

setup: $(STAMP)
$(STAMP): pyproject.toml setup.py constraints.txt
	@echo "== Setting up $(VENV): torch and the other packages of constraints.txt (a few gigabytes, once)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	@touch $@

train: setup
	@echo "== 1/4  The embedded dataset: videos that only their motion tells apart -> data/motion"
	$(PY) tools/make_motion.py --out data/motion
	@echo "== 2/4  Training -> runs/motion_rs"
	$(PY) tools/train_net.py --cfg motion_rs.yaml
	@echo "== 3/4  Multi-view test of the best checkpoint"
	$(PY) tools/test_net.py --cfg motion_rs.yaml
	@echo "== 4/4  The control: the same on single frames"
	@$(MAKE) --no-print-directory train-one-frame
	@$(PY) -c "$$RESULTS"

train-one-frame: setup
	$(PY) tools/make_motion.py --out data/motion
	$(PY) tools/train_net.py --cfg motion_rs_one_frame.yaml
	$(PY) tools/test_net.py --cfg motion_rs_one_frame.yaml

test: setup
	$(PY) -m pytest -n $(TEST_JOBS)

test-slow: setup
	$(PY) -m pytest -n $(TEST_JOBS) -m "slow and not exhaustive"

test-all: setup
	$(PY) -m pytest -n $(TEST_JOBS) -m "not gpu and not xla and not tf"
	$(MAKE) --no-print-directory test-xla TESTS_XLA=xla
	$(MAKE) --no-print-directory test-tf TESTS_TF=tf

# An environment with other versions of a few packages. All others are those of $(VENV), which Python finds after them.
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define ENVIRONMENT
	test -x $(1)/bin/python || $(PY) -m venv $(1)
	$(PY) $(PACKAGES) > "$$($(1)/bin/python $(PACKAGES))/video_rs.pth"
	$(1)/bin/python -m pip install --disable-pip-version-check --no-compile -q -r $(2)
endef

$(STAMP_TF): tests/tf/requirements.txt | $(STAMP)
	@echo "== Setting up $(VENV_TF): TensorFlow and its Model Garden (three gigabytes, once)"
	$(call ENVIRONMENT,$(VENV_TF),tests/tf/requirements.txt)
	@touch $@

test-tf: $(STAMP_TF)
	$(VENV_TF)/bin/python -m pytest -m "$(TESTS_TF)" -W ignore tests/tf

# torch_xla works with the torch of its own version alone.
$(STAMP_XLA): tests/xla/requirements.txt | $(STAMP)
	@echo "== Setting up $(VENV_XLA): torch_xla and its torch (six gigabytes, once)"
	$(call ENVIRONMENT,$(VENV_XLA),tests/xla/requirements.txt)
	@touch $@

test-xla: $(STAMP_XLA)
	PJRT_DEVICE=CPU OMP_NUM_THREADS=1 $(VENV_XLA)/bin/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "$(TESTS_XLA)" tests/xla

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
