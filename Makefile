# Two commands: `make results` runs every notebook, `make test` tests them and the package. Each sets itself up in .venv.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/ready

help:            ## show this list
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): .*## /  make \1\t/' | expand -t 22

install: $(READY)  ## make .venv with the package, in place, and all that notebooks and tests need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make install PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

results: $(READY)  ## execute all notebooks on the embedded sample, into results/quick (minutes)
	$(BIN)/python tools/run_all.py --profile quick

results-full: $(READY)  ## the same on CIFAR-10 with 40 epochs, into results/full (an hour or more without a GPU)
	$(BIN)/python tools/run_all.py --profile full
	$(BIN)/python tools/results_page.py

verify: $(READY)  ## evaluate the shipped weights on CIFAR-10 and hold them against their record
	$(BIN)/dcae verify
	$(BIN)/dcae verify results/codec/thumbnails
	$(BIN)/dcae verify results/codec/photographs

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

app: $(READY)    ## show notebook 06 as an app, without its code
	$(BIN)/voila --Voila.auto_token=True notebooks/06_exploring_latents.ipynb

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg

test: $(READY)  ## every function and every stored output, in minutes: no browser, no server, no kill, no network
	@$(PYTEST) -m "not slow" tests notebooks; status=$$?; \
	echo 'Not run: kills, several processes, servers, browsers, benchmarks, notebooks with their solutions. `make test-all` runs them.'; exit $$status

test-all: $(READY)  ## make test, and all that is slow besides
	$(PYTEST) tests notebooks

lint: $(READY)  ## ruff over the package, the tests and the notebooks; mypy over the package
	$(BIN)/ruff check .
	$(BIN)/mypy dcae_lib

notebooks: $(READY)  ## execute notebooks (all, or those in NAMES=) and store their outputs in place
	OMP_NUM_THREADS=1 $(BIN)/python tools/refresh.py $(NAMES)

student: $(READY)  ## copies of the notebooks without their solutions, in build/student
	rm -rf build/student
	$(BIN)/python tools/student.py

site: $(READY)   ## make web pages of the course, with the outputs that are stored and live explorers, in build/site
	rm -rf build/site
	$(BIN)/python tools/build_site.py

runs: $(READY)   ## train the recorded runs that are not there, both presets, seeds and ablations (many hours without a GPU)
	$(BIN)/python bench/runs.py
	$(BIN)/python tools/results_page.py

codec: $(READY)  ## train the codec's networks and draw its curves beside JPEG, WebP and AVIF (hours without a GPU)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,bench]"
	$(BIN)/python data/get_photos.py
	$(BIN)/dcae train-codec --out results/codec/thumbnails
	$(BIN)/dcae train-codec --photos data/photographs/train --out results/codec/photographs
	$(BIN)/python bench/rd.py
	$(BIN)/python bench/photographs.py
	$(BIN)/python bench/picture.py
	$(BIN)/python tools/results_page.py

nightly: $(READY)  ## what takes too long for every change: 100,000 forged streams
	DCAE_FUZZ=100000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/codec

bench: $(READY)  ## measure speeds (downloads CIFAR-10), and write results/bench/*.json
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,bench]"
	for name in soap train step photos codec explore stream distributed; do $(BIN)/python bench/$$name.py || exit 1; done

clean:           ## remove quick results and caches; keeps .venv and downloaded data
	rm -rf results/quick .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find dcae_lib notebooks tests bench data -name __pycache__ -type d -exec rm -rf {} +

.PHONY: help install results results-full verify lab app test test-all lint notebooks student site runs codec nightly bench clean
