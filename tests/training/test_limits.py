"""Limits of a call of fit: what ends it early is said, counts anew in the next call, and changes no result."""

import pytest
import yaml

from degrain.models.core.errors import InputError
from degrain.models.training.limits import Limits
from tests import tiny
from tests.tiny import BATCH, BUDGET, LEG, assert_equal_states
from tests.training.recipes import callback_option


def limited(capsys: pytest.CaptureFixture, root, stage: str, *options: str) -> tuple[int, str]:
    """Run or go on with `mine`; return the images seen and the line before the run's."""
    capsys.readouterr()
    folder = tiny.run(root, stage, "--name", "mine", "--ckpt_path", "last", *options).with_name("mine")
    lines = capsys.readouterr().out.strip().splitlines()
    *_, said, last = (line for line in lines if not line.startswith("next: "))
    assert last == f"run: {folder}"
    return tiny.checkpoint(folder)["degrain"]["images_seen"], said


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_steps_are_batches_of_this_call_and_change_nothing(trained, root, capsys, stage):
    way = "images: the same command with --ckpt_path last goes on"
    said = f"trainer.max_steps 5 ended this call after {5 * BATCH} of {BUDGET} {way}"
    assert limited(capsys, root, stage, "--trainer.max_steps", "5") == (5 * BATCH, said)
    assert yaml.safe_load((root / "runs/mine/config.yaml").read_text())["trainer"]["max_steps"] == -1  # of the call
    seen, said = limited(capsys, root, stage, "--trainer.max_steps", str(BUDGET // BATCH), "--trainer.max_epochs", "3")
    assert seen == BUDGET and "ended this call" not in said
    one, other = tiny.checkpoint(getattr(trained, stage)), tiny.checkpoint(root / "runs/mine")
    for what in ("state_dict", "optimizer_states"):
        assert_equal_states(one[what], other[what], what)


def test_an_epoch_is_a_leg_and_a_callback_may_end_a_call_too(root, capsys):
    stop = callback_option("EarlyStopping", monitor="val/distortion", patience=1, stopping_threshold=1e9)
    seen, said = limited(capsys, root, "vae", stop)
    assert seen == LEG and said.startswith(f"a callback ended this call after {LEG} of {BUDGET}")
    seen, said = limited(capsys, root, "vae", "--trainer.max_epochs", "1", "--model.budget", str(3 * LEG))
    assert seen == 2 * LEG and said.startswith("trainer.max_epochs 1 ended")
    options = ("--trainer.max_epochs", "1", "--trainer.max_steps", "2", "--model.budget", str(3 * LEG))
    seen, said = limited(capsys, root, "vae", *options)
    assert seen == 2 * LEG + 2 * BATCH and said.startswith("trainer.max_steps 2 ended")  # before the leg


def test_time_is_that_of_this_call(root, capsys, monkeypatch):
    monkeypatch.setattr(Limits, "time_elapsed", lambda self, *_: 10.0 * self.done["max_steps"])
    for call in (1, 2):
        seen, said = limited(capsys, root, "vae", "--trainer.max_time", "00:00:00:20")
        assert seen == 2 * call * BATCH and said.startswith("trainer.max_time 00:00:00:20 ended this call")


@pytest.mark.parametrize(
    "given",
    [{"max_steps": 0}, {"max_epochs": 0}, {"max_time": "00:00:00:00"}, {"max_time": "1 h"}, {"max_time": {"eons": 1}}],
    ids=str,
)
def test_a_limit_that_leaves_nothing_to_do_or_cannot_be_read_is_refused(given):
    with pytest.raises(InputError, match=f"trainer.{next(iter(given))} .*: (must be|give it as)"):
        Limits(**given)
