"""Test which files of a folder are used: links, formats, names in any bytes, and what is passed over."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from degrain.data.cache import cached_arrays
from degrain.data.files import printable, shown
from degrain.data.folder import FolderSource
from degrain.data.listing import list_images
from degrain.models.core.errors import InputError
from tests.data.test_sources import fill, noise, refused, save

LATIN = os.fsdecode(b"caf\xe9.png")  # a name that is not UTF-8


def names(root):
    return [image.name for image in list_images(root, lambda folder: None).images]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    fill(tmp_path, ["root/a/1.png", "root/2.png", "away/3.png", "away/deep/4.png"])
    (tmp_path / "root/linked").symlink_to(tmp_path / "away")
    (tmp_path / "root/a/up").symlink_to("..")
    (tmp_path / "away/back").symlink_to("../root/a")
    (tmp_path / "root/self").symlink_to("self")
    assert names(tmp_path / "root") == ["2.png", "a/1.png", "linked/3.png", "linked/deep/4.png"]


def test_an_image_that_is_reached_twice_is_used_once_and_as_itself(tmp_path):
    fill(tmp_path, ["z/1.png", "z/2.png"])
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "3.png").symlink_to("z/2.png")
    source = FolderSource(tmp_path, valid_share=1e-9)
    assert source.items("train") == ["z/1.png", "z/2.png"]
    assert any("1 links to images" in line for line in source.remarks())


@pytest.mark.parametrize("suffix", "bmp dib tif TIFF gif webp jfif JPE apng avif ppm".split())
def test_usual_formats_are_read(tmp_path, suffix):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "tif": "TIFF", "dib": "BMP"}.get(suffix.lower())
    Image.fromarray(noise(8, 8)).save(tmp_path / f"1.{suffix}", kind)
    source = FolderSource(tmp_path, valid_share=1e-9)
    assert source.items("train") == [f"1.{suffix}"] and source.read(f"1.{suffix}", 8)["image"].shape == (8, 8, 3)


def test_what_is_passed_over_is_counted_by_suffix(tmp_path):
    fill(tmp_path, ["1.png", ".hidden.png", ".trash/d.png"])
    for name in ("2.txt", "3.TXT", "4.heic", "5.zip", "6.npz", "7", "odd. name"):
        (tmp_path / name).write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    (line,) = [line for line in FolderSource(tmp_path).remarks() if line.startswith("passed over: ")]
    counts, *hints = line.removeprefix("passed over: ").split("; ")
    wanted = {
        "2 hidden",
        "2 .txt",
        "1 .heic",
        "1 .zip",
        "1 .npz",
        "2 without a usual suffix",
        "1 no files (pipes, sockets)",
    }
    assert set(counts.split(", ", 6)) == wanted
    assert [hint.partition(":")[0] for hint in hints] == [".zip", ".npz", ".heic"] and "unpack it" in hints[0]


def test_a_folder_of_archives_says_what_to_do(tmp_path):
    for name in ("a.zip", "b.parquet"):
        (tmp_path / name).write_text("")
    message = refused(lambda: FolderSource(tmp_path))
    assert "it has 1 .zip, 1 .parquet; .zip: unpack it" in message and "; add some (jpg, " in message


# --- names


def test_names_in_any_bytes_are_read_cached_and_shown_in_one_line(tmp_path, capsys):
    long = "x" * 251 + ".png"
    for i, name in enumerate((LATIN, "new\nline.png", long, "ü.png")):
        save(tmp_path / "root" / name, noise(8, 8, i))
    source = FolderSource(tmp_path / "root", valid_share=1e-9)
    assert len(cached_arrays(source, "train", 8, tmp_path / "cache")["image"]) == 4
    for name in (LATIN, "new\nline.png", long):
        (tmp_path / "root" / name).write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        source.read("new\nline.png", 8)
    assert r"new\nline.png: not a readable image" in str(caught.value)
    source = FolderSource(tmp_path / "root", valid_share=1e-9)
    assert len(cached_arrays(source, "train", 8, tmp_path / "cache", skip_corrupt=True)["image"]) == 1
    assert r"leaves out 3 of 4 images (first: caf\xe9.png)" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"caf\\xe9.png: not a readable image"):
        source.read(LATIN, 8)


def test_a_root_in_any_bytes_has_a_cache(tmp_path):
    for name in (os.fsdecode(b"\xe9\xff"), "new\nline", "y" * 255):
        fill(tmp_path / name, ["1.png"])
        source = FolderSource(tmp_path / name, valid_share=1e-9)
        assert len(cached_arrays(source, "train", 8, tmp_path / "cache")["image"]) == 1
        assert source.name.encode() and source.name.isprintable()


def test_paths_are_shown_in_one_printable_line(monkeypatch):
    assert shown(os.fsdecode(b"a\xe9/\xc3\xbc\n.png")) == "a\\xe9/ü\\n.png"
    assert len(shown("a/" * 500 + "b.png")) < 250 and shown("a/" * 500 + "b.png").endswith("/b.png")
    monkeypatch.setattr("sys.stdout", open(os.devnull, "w", encoding="ascii"))
    assert printable("ü") == "\\xfc"


# --- one cache


def test_the_same_folder_has_one_cache_however_its_path_is_written(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "faces", ["train/1.png", "valid/2.png", "valid/3.png"])
    (tmp_path / "link").symlink_to("faces")
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "faces", "faces", "./faces/", "x/../faces", "link"):
        for split in ("train", "valid"):
            cached_arrays(FolderSource(path), split, 8, "cache")
    assert "rebuilding" not in capsys.readouterr().out
    assert len([path for path in Path("cache").iterdir() if path.is_dir()]) == 2


def test_another_share_has_a_cache_of_its_own(tmp_path):
    fill(tmp_path, ["1.png"])
    assert FolderSource(tmp_path, valid_share=0.5).name != FolderSource(tmp_path).name


def test_small_images_are_enlarged_and_counted(tmp_path, capsys):
    for i in range(3):
        save(tmp_path / f"root/{i}.png", noise(8 + 8 * (i == 2), 8 + 8 * (i == 2), i))
    cached_arrays(FolderSource(tmp_path / "root", valid_share=1e-9), "train", 16, tmp_path / "cache")
    said = [line for line in capsys.readouterr().out.splitlines() if "enlarged" in line]
    assert len(said) == 1 and said[0].endswith("of 3 images, smaller than 16 pixels and enlarged: 2")
    shutil.rmtree(tmp_path / "cache")
    cached_arrays(FolderSource(tmp_path / "root", valid_share=1e-9), "train", 8, tmp_path / "cache")
    assert "enlarged" not in capsys.readouterr().out
