# `make demo` trains both stages on drawn portraits and samples, `make test` lints and tests, `make docs` runs the commands
# of README.md in a fresh clone and draws the pictures of docs/ that come from exports anew.
# Each creates .venv first if there is none. PYTHON: the interpreter (3.11 or newer). WORKERS: processes of the tests.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test docs

demo: .venv/ready
	@echo "demo 1/3: stage 1, the VAE, on drawn portraits"
	$(BIN)/python train.py fit -c configs/demo_vae.yaml --ckpt_path last
	@echo "demo 2/3: stage 2, the GAN that denoises its draws"
	$(BIN)/python train.py fit -c configs/demo_gan.yaml --ckpt_path last
	@echo "demo 3/3: sampling"
	$(BIN)/python sample.py runs/demo_gan/last.ckpt --n 16 --seed 0 --out runs/demo_gan/samples.png --overwrite true
	@echo "to see: runs/demo_gan/samples.png, the faces; curves.png and pictures/ in runs/demo_vae and runs/demo_gan"
	@echo "your own images: $(BIN)/python train.py fit -c configs/vae_celeba64.yaml --data.root FOLDER, and what it prints at its end"

test: .venv/ready
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

docs: .venv/ready
	$(BIN)/python -m tests.docs.commands

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11; name another one: make PYTHON=..."; exit 2; }
	@echo "making .venv with everything that degrain needs (PyTorch is several GB; some minutes, once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@touch $@
