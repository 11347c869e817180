"""sample.py from its command line: pixels by seed and number, three kinds of file, errors in one line."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from degrain.models.inference import drawing, writing
from degrain.models.inference.pictures import panel
from degrain.models.inference.pipeline import load_pipeline

ROOT = Path(__file__).parent.parent
ROWS = {"vae": ["mean", "std", "sample"], "gan": ["mean", "std", "sample", "denoised"]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty folder: sampling needs nothing but a checkpoint."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(checkpoint: Path, *options: str) -> np.ndarray:
    """Run sample.py and return the content of FILE.npz, (N, H, W, 3) uint8."""
    sample.main([str(checkpoint), "--out", "images.npz", "--overwrite", "true", "--device", "cpu", *options])
    with np.load("images.npz") as file:
        assert file.files == ["images"]
        return file["images"]


def error_of(capsys: pytest.CaptureFixture, command: Sequence[object]) -> str:
    """Run a command that fails with exit code 2, and return its one line on standard error."""
    with pytest.raises(SystemExit) as caught:
        sample.main([str(word) for word in command])
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# --- which pixels


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_the_rows_are_those_of_the_stage_and_the_last_is_written(trained, stage):
    checkpoint = getattr(trained, stage) / "last.ckpt"
    rows = {row: images(checkpoint, "--n", "3", "--row", row) for row in ROWS[stage]}
    assert all(a.shape == (3, 32, 32, 3) and a.dtype == np.uint8 for a in rows.values())
    assert len({a.tobytes() for a in rows.values()}) == len(rows)
    assert np.array_equal(images(checkpoint, "--n", "3"), rows[ROWS[stage][-1]])
    _, pipeline = load_pipeline(checkpoint)
    assert list(pipeline.rows) == ROWS[stage]
    drawn = pipeline.draw(0, range(3))["mean"].clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(rows["mean"] - 255 * drawn).max() <= 0.5 + 1e-3


def test_a_sample_is_the_mean_and_noise_of_the_std(trained):
    _, pipeline = load_pipeline(trained.gan / "last.ckpt")
    rows = pipeline.draw(0, range(8))
    noise = (rows["sample"] - rows["mean"]) / rows["std"]
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


def test_the_seed_decides(trained):
    checkpoint = trained.gan / "last.ckpt"
    first = images(checkpoint, "--n", "4", "--seed", "5")
    torch.rand(3)
    assert np.array_equal(first, images(checkpoint, "--n", "4", "--seed", "5"))
    other = images(checkpoint, "--n", "4", "--seed", "6")
    assert all(not np.array_equal(a, b) for a in first for b in other)


def test_an_image_depends_on_seed_and_number_alone(trained):
    checkpoint = trained.gan / "last.ckpt"
    many = images(checkpoint, "--n", "7", "--batch_size", "7").astype(int)
    assert np.abs(images(checkpoint, "--n", "3", "--batch_size", "7") - many[:3]).max() <= 1
    for size in ("1", "2", "100"):  # sums may run in another order
        assert np.abs(images(checkpoint, "--n", "7", "--batch_size", size) - many).max() <= 1


@pytest.mark.parametrize("stage", ["vae", "gan"])
@pytest.mark.parametrize("mode", ["plain", "photographs", "path"])
def test_bf16_is_near_and_depends_on_seed_and_number_alone(trained, stage, mode):
    _, pipeline = load_pipeline(getattr(trained, stage) / "last.ckpt")
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), np.uint8) if mode == "photographs" else None
    sources = drawing.Sources(pipeline, [0], 5 if mode == "path" else 20, photographs=x)
    plan = drawing.interpolated(sources, 5) if mode == "path" else drawing.plain(sources)
    exact = plan.draw(range(20))
    pipeline.bf16 = True
    near = plan.draw(range(20))
    for row in pipeline.rows:
        images = near[row]
        assert images.dtype == torch.float32
        assert 0 < 255 * (images - exact[row]).abs().mean() < 1, row
        for numbers in (range(1), range(1, 4), range(4, 20)):
            assert torch.equal(plan.draw(numbers)[row], images[numbers.start : numbers.stop]), row
    pipeline.bf16 = False
    assert all(torch.equal(plan.draw(range(20))[row], exact[row]) for row in exact)


def test_the_precision_is_an_option(trained):
    checkpoint = trained.gan / "last.ckpt"
    exact, near = (images(checkpoint, "--n", "4", "--precision", precision) for precision in ("32", "bf16"))
    assert np.array_equal(exact, images(checkpoint, "--n", "4")) and not np.array_equal(exact, near)
    assert np.abs(exact.astype(int) - near).max() <= 8


@pytest.mark.parametrize(("precision", "emulated", "said"), [("bf16", True, 1), ("bf16", False, 0), ("32", True, 0)])
def test_bf16_without_instructions_for_it_is_said_to_be_slow(trained, monkeypatch, capsys, precision, emulated, said):
    monkeypatch.setattr("degrain.models.inference.pipeline.cpu_emulates_bf16", lambda: emulated)
    images(trained.vae / "last.ckpt", "--n", "1", "--precision", precision, "--device", "cpu")
    assert capsys.readouterr().out.count("--precision bf16: this processor has no instructions for it") == said


def test_the_standard_prior_is_another_one(trained):
    checkpoint = trained.vae / "last.ckpt"
    fitted = images(checkpoint, "--n", "2", "--row", "mean")
    assert np.array_equal(fitted, images(checkpoint, "--n", "2", "--row", "mean", "--prior", "fitted"))
    assert not np.array_equal(fitted, images(checkpoint, "--n", "2", "--row", "mean", "--prior", "standard"))


def test_the_best_prior_of_the_checkpoint_is_the_default(trained, learned):
    options = ("--n", "2", "--row", "mean")
    drawn = {prior: images(learned, *options, "--prior", prior) for prior in ("learned", "fitted", "standard")}
    assert len({a.tobytes() for a in drawn.values()}) == 3
    assert np.array_equal(images(learned, *options), drawn["learned"])
    assert np.array_equal(images(trained.vae / "last.ckpt", *options), drawn["fitted"])


def test_an_image_of_the_learned_prior_depends_on_seed_and_number_alone(learned):
    many = images(learned, "--n", "5", "--batch_size", "5").astype(int)
    for size in ("1", "2"):
        assert np.abs(images(learned, "--n", "5", "--batch_size", size) - many).max() <= 1


# --- which files


@pytest.mark.parametrize("stage", ["vae", "gan"])
def test_a_png_is_the_panel_of_all_rows(trained, capsys, stage):
    checkpoint = getattr(trained, stage) / "last.ckpt"
    sample.main([str(checkpoint), "--n", "3", "--batch_size", "2", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-1] == "wrote: samples.png"
    _, pipeline = load_pipeline(checkpoint)
    batches = [pipeline.draw(0, range(2)), pipeline.draw(0, range(2, 3))]
    expected = panel({row: torch.cat([batch[row] for batch in batches]) for row in ROWS[stage]})
    with Image.open("samples.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_a_folder_holds_single_images(trained, capsys):
    checkpoint = trained.gan / "last.ckpt"
    sample.main([str(checkpoint), "--n", "5", "--batch_size", "2", "--out", "new/folder/", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-1] == "wrote: new/folder/"
    paths = sorted(Path("new/folder").iterdir())
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(5)]
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert np.array_equal(pictures, images(checkpoint, "--n", "5", "--batch_size", "2"))
    sample.main([str(checkpoint), "--n", "2", "--out", "means/", "--row", "mean", "--device", "cpu"])
    assert np.array_equal(
        [np.asarray(Image.open(f"means/{i:06d}.png")) for i in range(2)],
        images(checkpoint, "--n", "2", "--row", "mean"),
    )


def test_folders_on_the_way_are_made_and_no_part_is_left(trained, elsewhere):
    sample.main([str(trained.vae / "last.ckpt"), "--n", "2", "--out", "a/b/c.npz", "--device", "cpu"])
    assert [path.name for path in Path("a/b").iterdir()] == ["c.npz"]


@pytest.mark.parametrize("out", ["there.png", "there.npz", "there/"])
def test_what_is_there_is_replaced_on_request_alone(trained, capsys, out):
    held = Path(out) / "own.txt" if out.endswith("/") else Path(out)
    held.parent.mkdir(exist_ok=True)
    held.write_bytes(b"mine")
    command = [trained.vae / "last.ckpt", "--n", "1", "--out", out, "--device", "cpu"]
    line = error_of(capsys, command)
    assert f"{out} exists; choose another --out or pass --overwrite true" in line
    assert held.read_bytes() == b"mine"
    assert error_of(capsys, [*command, "--row", "denoised", "--overwrite", "true"]) and held.read_bytes() == b"mine"
    sample.main([str(word) for word in (*command, "--overwrite", "true")])
    assert (Path(out) / "000000.png").exists() if out.endswith("/") else held.read_bytes() != b"mine"


def test_single_images_of_somebody_else_are_not_replaced(trained, capsys):
    command = [trained.vae / "last.ckpt", "--n", "3", "--out", "mine/", "--device", "cpu"]
    sample.main([str(word) for word in command])
    sample.main([str(word) for word in (*command, "--n", "1", "--overwrite", "true")])
    assert [path.name for path in Path("mine").iterdir()] == ["000000.png"]  # those of an earlier call are
    Image.new("RGB", (2, 2)).save("mine/000007.png")
    content = Path("mine/000007.png").read_bytes()
    line = error_of(capsys, [*command, "--overwrite", "true"])
    assert "mine holds images that sample.py has not written (000007.png); choose another --out" in line
    assert Path("mine/000007.png").read_bytes() == content


# --- as a process


def test_a_checkpoint_alone_is_enough(trained, elsewhere):
    shutil.copy(trained.gan / "last.ckpt", elsewhere / "alone.ckpt")
    command = [sys.executable, ROOT / "sample.py", "alone.ckpt", "--n", "3", "--batch_size", "2", "--out", "s.npz"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "wrote: s.npz"
    assert "sampling" in done.stderr and "Warning" not in done.stderr
    with np.load("s.npz") as file:
        assert np.abs(file["images"] - images(elsewhere / "alone.ckpt", "--n", "3").astype(int)).max() <= 1


# --- calls that are interrupted


def test_a_call_clears_what_a_killed_one_has_left_and_nothing_else(trained, capsys):
    command = [str(trained.vae / "last.ckpt"), "--n", "1", "--device", "cpu", "--out", "new/"]
    part = Path("new/.part-of-images-3")
    part.mkdir(parents=True)
    (part / "000007.png").write_bytes(b"half")
    Path("new/.images.lock").touch()
    with writing.claimed(Path("new")):
        assert "new/ is being written by another call; choose another --out" in error_of(capsys, command)
    part.mkdir()
    (part / "000007.png").write_bytes(b"half")
    sample.main(command)  # needs no --overwrite
    assert [path.name for path in Path("new").iterdir()] == ["000000.png"]
    Path("new/.part-mine").mkdir()
    part.mkdir()
    (part / "notes.txt").write_text("the user's")
    sample.main([*command, "--overwrite", "true"])
    assert {path.name for path in Path("new").iterdir()} == {"000000.png", ".part-mine", part.name}
    assert (part / "notes.txt").exists()


def test_a_signal_while_single_images_are_drawn_leaves_nothing(trained, monkeypatch):
    def interrupted(batches):
        yield 0, batches.plan.draw(range(2))
        assert len(list(Path("new").glob(".part-*/0*.png"))) == 2
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(writing.Batches, "__iter__", interrupted)
    with pytest.raises(SystemExit) as caught:
        sample.main([str(trained.vae / "last.ckpt"), "--n", "2", "--device", "cpu", "--out", "new/"])
    assert caught.value.code == 128 + signal.SIGTERM and not Path("new").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("out", ["new.npz", "new.png", "--export"])
def test_a_signal_in_a_write_leaves_nothing(trained, monkeypatch, number, out):
    """The signal comes when the file is written and not yet renamed."""
    monkeypatch.setattr(os, "replace", lambda *_: signal.raise_signal(number))
    options = ["--export", "new.safetensors"] if out == "--export" else ["--out", out, "--n", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        sample.main([str(trained.vae / "last.ckpt"), *options])
    assert caught.value.code == 128 + number and not list(Path().iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
