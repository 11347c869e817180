#!/usr/bin/env bash
# One batch on the command line is all batches: LightningCLI turns `--trainer.limit_train_batches 1` into 1.0.
#
# Versions: pytorch-lightning 2.6.6 with jsonargparse 4.53.0 (Python 3.11, torch 2.14.1).
#
# Expected: the Trainer's documentation gives an int as a number of batches and a float as a share of them, so that 1 is
#   one batch and 1.0 the whole epoch. `Trainer(limit_train_batches=1)` does that.
# Seen: LightningCLI parses `1` to the float 1.0. The Trainer then takes every batch of the epoch, without a word. `2`
#   becomes 2.0, which the Trainer happens to read as two batches. limit_val_batches and limit_test_batches
#   share its type, Optional[Union[int, float]], and its fate; overfit_batches, Union[int, float], stays an int.
# Why it matters: `1` is what one types for a smoke test. Instead of a second it runs the whole epoch, and a job that
#   was to overfit one batch trains on all data.
# Way out: take 2, or set the option in Python, or `--trainer.fast_dev_run 1`, which stays an int.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pytorch-lightning==2.6.6" "jsonargparse[signatures]==4.53.0" "torch==2.14.1"
cd "$folder"
cat > one.py <<'PYTHON'
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel

names = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
seen = {}
for name in names:
    for value in ("1", "2"):
        cli = LightningCLI(
            BoringModel, BoringDataModule, run=False, save_config_callback=None, args=[f"--trainer.{name}={value}"]
        )
        seen[name, value] = cli.config.trainer[name]
        print(f"--trainer.{name} {value} is parsed to {seen[name, value]!r}")

one = Trainer(limit_train_batches=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
one.fit(BoringModel(), BoringDataModule())
cli = LightningCLI(
    BoringModel,
    BoringDataModule,
    run=False,
    save_config_callback=None,
    args=["--trainer.limit_train_batches=1", "--trainer.max_epochs=1", "--trainer.logger=false",
          "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"],
)
cli.trainer.fit(cli.model, cli.datamodule)
print(f"steps of Trainer(limit_train_batches=1): {one.global_step}; of the command line: {cli.trainer.global_step}")
changed = [key for key, value in seen.items() if type(value) is not float]
assert not changed, f"parsed as int by now: {changed}"
assert one.global_step == 1 and cli.trainer.global_step > 1, "the command line takes one batch by now"
PYTHON
CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/python" one.py 2>/dev/null
