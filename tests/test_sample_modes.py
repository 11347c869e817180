"""The modes of sample.py from its command line: photographs, variations, paths, latents; alone and in two processes."""

import multiprocessing
import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import sample
from degrain.models.inference.codes import interpolate
from degrain.models.inference.drawing import latents_by_information
from degrain.models.inference.pictures import GAP, panel, to_uint8
from degrain.models.inference.pipeline import Pipeline, load_pipeline
from degrain.models.inference.variations import variations
from degrain.models.inference.writing import write_array
from tests.bad_input.cases import photograph


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with photographs of several sizes."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", 32), ("b/c.png", (50, 40)), ("b/d.png", (178, 218)), ("e.png", 20)):
        photograph(tmp_path / "photos" / name, size)
    (tmp_path / "photos/notes.txt").touch()
    return tmp_path


@pytest.fixture(scope="module")
def pipeline(trained) -> Pipeline:
    return load_pipeline(trained.gan / "last.ckpt")[1]


def run(trained, out: str, *options: str) -> np.ndarray | None:
    """Run sample.py on the checkpoint of stage 2; return the array that it writes, if it writes one."""
    sample.main([str(trained.gan / "last.ckpt"), "--out", out, "--overwrite", "true", "--device", "cpu", *options])
    if out.endswith(".npz"):
        with np.load(out) as file:
            return file["images"]


def assert_alike(images: np.ndarray, others: np.ndarray) -> None:
    """Assert that 8-bit images are equal but for the order of float sums."""
    assert images.shape == others.shape and np.abs(images.astype(int) - others).max() <= 1


def own_photographs() -> torch.Tensor:
    """Return the photographs by their path (N, 3, 32, 32) in [0, 1], cropped by hand."""
    cut = {"a.png": None, "b/c.png": (5, 0, 45, 40), "b/d.png": (0, 20, 178, 198), "e.png": None}
    images = [Image.open(f"photos/{name}").crop(box) for name, box in cut.items()]
    resized = [np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255


# --- photographs


def test_photographs_are_cropped_and_reconstructed_by_their_numbers(trained, pipeline, capsys):
    x = own_photographs()
    assert_alike(run(trained, "x.npz", "--images", "photos", "--row", "photograph"), to_uint8(x))
    said = "photographs: photos: 4 cropped to the centre square, resized to 32x32 pixels, 1 enlarged; "
    assert f"{said}passed over: 1 .txt\n" in capsys.readouterr().out
    want = to_uint8(pipeline.reconstruct(3, range(4), x)["denoised"])
    for size in ("1", "3"):
        assert_alike(run(trained, "r.npz", "--images", "photos", "--seed", "3", "--batch_size", size), want)
    assert_alike(run(trained, "r.npz", "--images", "photos/a.png", "--seed", "3"), want[:1])
    assert_alike(run(trained, "r.npz", "--images", "photos", "--n", "2", "--seed", "3"), want[:2])


def test_a_panel_of_photographs_has_them_in_its_first_row(trained, pipeline):
    run(trained, "r.png", "--images", "photos", "--n", "3", "--noise", "0.5", "--temperature", "0")
    x = own_photographs()[:3]
    want = panel({"photograph": x, **pipeline.reconstruct(0, range(3), x, 0, 0.5)})
    assert_alike(np.asarray(Image.open("r.png")), np.asarray(want))


# --- seeds, temperature, noise


def test_seeds_follow_one_another_and_each_draws_its_own_images(trained):
    images = run(trained, "a.npz", "--n", "3", "--seed", "5,0-1")
    assert_alike(images, np.concatenate([run(trained, "b.npz", "--n", "3", "--seed", seed) for seed in "501"]))


def test_temperature_and_noise_are_apart(trained, pipeline):
    images = run(trained, "a.npz", "--n", "2", "--temperature", "0.5", "--noise", "2", "--row", "sample")
    assert_alike(images, to_uint8(pipeline.draw(0, range(2), temperature=0.5, noise=2)["sample"]))


def test_best_of_chooses_draws_for_every_mode(trained, pipeline):
    want = pipeline.draw(0, range(4), best_of=3)
    options = ("--best_of", "3", "--row", "mean", "--n", "4")
    for size in ("1", "3"):
        assert_alike(run(trained, "a.npz", *options, "--batch_size", size), to_uint8(want["mean"]))
    assert_alike(run(trained, "v.npz", *options, "--variations", "2"), to_uint8(want["mean"]))
    path = run(trained, "p.npz", *options, "--interpolate", "true", "--steps", "2")
    assert_alike(path[[0, 1, 3, 5]], to_uint8(want["mean"]))


# --- variations


def test_variations_are_a_panel_or_all_images_of_each_z(trained, pipeline):
    options = ("--variations", "3", "--n", "2", "--batch_size", "3")
    want = variations(pipeline, 0, range(2), 3)
    run(trained, "v.png", *options)
    assert_alike(np.asarray(Image.open("v.png")), np.asarray(panel(want)))
    each = torch.stack([want[f"denoised {k}"] for k in (1, 2, 3)], 1).flatten(0, 1)
    assert_alike(run(trained, "v.npz", *options), to_uint8(each))
    assert_alike(run(trained, "v.npz", *options, "--row", "mean"), to_uint8(want["mean"]))
    run(trained, "v/", *options)
    pictures = [np.asarray(Image.open(path)) for path in sorted(Path("v").iterdir())]
    assert_alike(np.stack(pictures), to_uint8(each))


def test_variations_of_photographs_begin_with_them(trained, pipeline):
    run(trained, "v.png", "--variations", "2", "--images", "photos", "--n", "2", "--temperature", "0.5")
    x = own_photographs()[:2]
    want = panel({"photograph": x, **variations(pipeline, 0, range(2), 2, x, temperature=0.5)})
    assert_alike(np.asarray(Image.open("v.png")), np.asarray(want))


# --- paths and latents


def test_a_path_goes_from_each_draw_to_the_next_also_of_another_seed(trained, pipeline):
    options = ("--interpolate", "true", "--steps", "4", "--n", "2", "--seed", "3,8")
    codes = [pipeline.codes(seed, [number]) for seed in (3, 8) for number in (0, 1)]
    want = []
    for a, b in zip(codes, codes[1:], strict=False):
        for t in (0, 1 / 3, 2 / 3, 1):
            want.append(pipeline.render(*interpolate(a, b, torch.tensor([t]), pipeline.prior))["denoised"])
    for size in ("5", "12"):
        assert_alike(run(trained, "i.npz", *options, "--batch_size", size), to_uint8(torch.cat(want)))


def test_a_path_between_photographs_has_their_reconstructions_at_its_ends(trained):
    path = run(trained, "i.npz", "--images", "photos", "--n", "2", "--interpolate", "true", "--steps", "3")
    ends = run(trained, "r.npz", "--images", "photos", "--n", "2")
    assert_alike(path[[0, 2]], ends)


def test_a_traversal_moves_the_latents_that_tell_most_each_in_a_line(trained, pipeline, capsys):
    run(trained, "t.png", "--traverse", "1,0", "--steps", "3", "--scale", "1", "--labels", "false", "--row", "mean")
    order, nats = latents_by_information(pipeline)
    said = f"1 is z[{order[1]}] ({nats[1]:.2f} nats), 0 is z[{order[0]}] ({nats[0]:.2f} nats)\n"
    assert f"latents by what they tell of an image: {said}" in capsys.readouterr().out
    assert nats.tolist() == sorted(nats.tolist(), reverse=True)
    canvas, std = np.asarray(Image.open("t.png")), pipeline.prior.cholesky.norm(dim=1)
    assert canvas.shape == (2 * (32 + GAP), GAP + 3 * (32 + GAP), 3)  # a line for each latent
    for line, latent in enumerate((order[1], order[0])):
        for step in range(3):
            z, _ = pipeline.codes(0, [0])
            z[0, latent] = pipeline.prior.mean[latent] + 3 * (step - 1) * std[latent]
            top, left = line * (32 + GAP), GAP + step * (32 + GAP)
            drawn = canvas[None, top : top + 32, left : left + 32]
            assert_alike(drawn, to_uint8(pipeline.vae.decode(z).mean))


# --- files


def test_an_animation_has_a_frame_for_each_image_pixelated(trained):
    options = ("--interpolate", "true", "--steps", "6")
    images = run(trained, "p.npz", *options).repeat(4, axis=1).repeat(4, axis=2)
    for out, apart in (("p.webp", 0), ("p.gif", 10)):
        run(trained, out, *options, "--scale", "4")
        with Image.open(out) as file:
            assert file.n_frames == 6 and file.info["loop"] == 0
            frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(file)]
        assert np.abs(np.stack(frames) - images).mean() <= apart


def test_single_images_are_enlarged_on_request(trained):
    run(trained, "s/", "--n", "1", "--scale", "3")
    pixels = run(trained, "s.npz", "--n", "1")[0].repeat(3, axis=0).repeat(3, axis=1)
    assert np.array_equal(np.asarray(Image.open("s/000000.png")), pixels)


def test_an_array_is_written_as_numpy_does(trained):
    images = run(trained, "a.npz", "--n", "5", "--batch_size", "2")
    np.savez("b.npz", images=images)
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_an_array_is_never_in_memory(tmp_path):
    batch = np.zeros((32, 64, 64, 3), np.uint8)
    tracemalloc.start()
    try:
        write_array(tmp_path / "a.npz", iter([batch] * 100), 3200)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * batch.nbytes
    with np.load(tmp_path / "a.npz") as file:
        assert file["images"].shape == (3200, 64, 64, 3)


# --- several processes


def drawn_by(rank: int, port: int, command: list[str]) -> None:
    """Run as one of two processes that torchrun starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "here"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sample.main(command)


CALLS = {
    "array": ("two.npz", "--n 7", 7),
    "panel": ("two.png", "--n 7", 7),
    "single images": ("two/", "--n 7", 7),
    "one image": ("two.npz", "--n 1", 1),
    "photographs": ("two.png", "--images photos", 4),
    "variations": ("two/", "--variations 2 --n 3 --images photos", 6),
    "path": ("two.gif", "--interpolate true --seed 1,2 --steps 3", 9),
    "latents": ("two.webp", "--traverse 0-1 --steps 3", 6),
}


@pytest.mark.parametrize("name", CALLS)
def test_two_processes_draw_what_one_does_each_image_once(trained, elsewhere, capfd, name):
    out, options, count = CALLS[name]
    command = [str(trained.gan / "last.ckpt"), "--batch_size", "2", "--device", "cpu", *options.split()]
    alone = out.replace("two", "one")
    sample.main([*command, "--out", alone])
    said = capfd.readouterr().out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=drawn_by, args=(rank, port, [*command, "--out", out])) for rank in (0, 1)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    says = capfd.readouterr().out
    assert f"drawn: {count} images, " in said and says.count(f"drawn: {count} images, ") == 1
    assert len(says.splitlines()) == len(said.splitlines())  # the first one speaks for both
    files = [sorted((elsewhere / place).rglob("*.png")) or [elsewhere / place] for place in (alone, out)]
    assert len(files[0]) == len(files[1]) == (count if out.endswith("/") else 1)
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes(), other.name
