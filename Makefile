# Every target but `clean` sets up the environment it needs, once.
PYTHON ?= $(shell for candidate in python3.11 python3.10 python3 python; do \
	if $$candidate -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 12))' \
		>/dev/null 2>&1; then echo $$candidate; break; fi; done)
RUN := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: demo demo-photos test lint docs bench faults report cards museum clean

# Digits at epsilon = 1: plain DP-SGD, and DP-Mix_Diff that starts from its public pool.
# Then the better one as it would be released: trained with a secret seed, exported.
demo: $(INSTALLED)
	$(RUN) bin/generate_pool.py --config=configs/digits_diff.py
	$(RUN) bin/experiment.py --config=configs/experiments/digits_arms.py \
		--config.epsilons="(1.0,)" --config.seeds=3 \
		--config.tune.optimizer.learning_rate="(0.4,)" --workdir=runs/demo/arms \
		--arms=dp_sgd,dp_mix_diff_warm --jobs=2
	$(RUN) bin/train.py --config=configs/digits_diff.py --workdir=runs/demo/release \
		--config.privacy.epsilon=1 --config.privacy.updates=60 \
		--config.privacy.clipping=automatic --config.warm_start.epochs=20 \
		--config.optimizer.learning_rate=0.4
	$(RUN) bin/export.py --workdir=runs/demo/release --output=runs/demo/model
	$(RUN) bin/privacy.py --card=runs/demo/model
	@echo "The comparison: runs/demo/arms/report.html. Next:"
	@echo "  $(RUN) bin/predict.py --workdir=runs/demo/release image.png"
	@echo "  $(RUN) bin/privacy.py --card=runs/demo/model --explain"
	@echo "  make demo-photos    # CIFAR-10 with no public data, epsilon = 3, minutes"

# TFDS downloads CIFAR-10, unless it is in its folder already.
demo-photos: $(INSTALLED)
	$(RUN) bin/train.py --config=configs/cifar10_scattering.py --workdir=runs/demo/photos

test: $(INSTALLED)
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Builds the site from docs/ into site/; fails if a link or a reference is broken.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# Takes half an hour. Other libraries are measured only if their environments are
# installed: python benchmarks/peers.py --install.
bench: $(INSTALLED)
	$(RUN) benchmarks/report.py

# Takes half an hour: killed processes, full disks, damaged checkpoints.
faults: $(INSTALLED)
	$(RUN) -m tests.fault_harness --output=docs/faults.md

# Takes three quarters of an hour.
report: $(INSTALLED)
	$(RUN) bin/generate_pool.py --config=configs/digits_diff.py
	$(RUN) bin/experiment.py --config=configs/experiments/digits_arms.py \
		--workdir=runs/digits_arms --jobs=2
	mkdir -p docs/digits_arms
	cp runs/digits_arms/report.md runs/digits_arms/figures.json runs/digits_arms/*.png \
		docs/digits_arms/

# The privacy cards of docs/examples: trains for some minutes, once.
cards: $(INSTALLED)
	PYTHONPATH=. $(RUN) docs/examples/make_cards.py

museum: $(INSTALLED)
	$(RUN) -m tests.museum.table docs/museum.md

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "dpmix_tf needs Python 3.10 or 3.11 (tensorflow-privacy 0.9 asks for < 3.12)," >&2; \
		echo "but none was found. Install one, or give its path: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; fi
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip  # older versions resolve this for hours
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
