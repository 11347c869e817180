"""Bad arguments of sample.py: one line answers each, and nothing is changed."""

import pytest

from tests.bad_input.cases import LAST, Case

CASES = {
    "no checkpoint": Case("sample", "checkpoint"),
    "none": Case(f"sample {LAST} --n 0", "--n 0 and --batch_size 32 must be at least 1"),
    "a negative seed": Case(f"sample {LAST} --seed -1", "--seed -1 at least 0"),
    "no batch": Case(f"sample {LAST} --batch_size 0", "--batch_size 0 must be at least 1"),
    "a string for a number": Case(f"sample {LAST} --n many", "many"),
    "a row of stage 2": Case(f"sample {LAST} --row denoised", "is of stage vae and has mean, std, sample"),
    "an unknown row": Case(
        f"sample {LAST} --row meen", "Expected one of mean, std, sample, denoised, generated. Got value: meen"
    ),
    "another library's name of a precision": Case(
        f"sample {LAST} --precision bf16-mixed", "Expected one of 32, bf16. Got value: bf16-mixed"
    ),
    "no thread": Case(f"sample {LAST} --threads 0", "--threads 0: must be from 1 to 1024"),
    "more threads than there can be": Case(f"sample {LAST} --threads 3000000000", "must be from 1 to 1024"),
    "half a thread": Case(f"sample {LAST} --threads 1.5", "1.5"),
    "an unknown prior": Case(f"sample {LAST} --prior other", "other"),
    "a prior that is not there": Case(
        f"sample {LAST} --prior learned", "has standard, fitted; stage 1 had 64 of the 1,000 images"
    ),
    "an unknown ending": Case(f"sample {LAST} --out picture.jpg", "picture.jpg: end it in .png, .npz or"),
    "an unknown ending beside an export": Case(
        f"sample {LAST} --export new.safetensors --out a.jpg", "--out a.jpg: end it in .png, .npz or"
    ),
    "an unknown ending of an export": Case(f"sample {LAST} --export a.ckpt", "a.ckpt: end it in .safetensors"),
    "no such device": Case(f"sample {LAST} --device gpu", "device gpu cannot be used"),
    "a typo": Case(f"sample {LAST} --sede 1", "unknown name `sede`; did you mean `seed`"),
    "a typo beside an export": Case(f"sample {LAST} --exports a.safetensors", "did you mean `export`"),
    "a row of stage 2 beside an export": Case(
        f"sample {LAST} --export new.safetensors --row denoised", "is of stage vae and has mean, std, sample"
    ),
    "another typo": Case(f"sample {LAST} --batchsize 1", "unknown name `batchsize`; did you mean `batch_size`"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_changes_nothing(home, capsys, name):
    CASES[name].check(home, capsys)
