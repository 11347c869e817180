"""Test decoding: every kind of pixel becomes upright 8-bit RGB, or is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from degrain.data.decode import decode_rgb, read_square, square_crop_resize
from degrain.data.folder import FolderSource
from degrain.models.core.errors import InputError
from tests.data.test_sources import noise, save


def one(path, size=8, crop="square"):
    """Return the pixels that a folder source makes of one file."""
    return FolderSource(path.parent, crop).read(path.name, size)["image"]


# --- pixels


def test_image_of_the_right_size_passes_unchanged():
    pixels = noise(64, 64)
    for crop in ("square", "none"):
        assert np.array_equal(square_crop_resize(Image.fromarray(pixels), crop, 64), pixels)


@pytest.mark.parametrize("crop", ["c178", "c148", "c140", "c128", "c108"])
def test_named_crop_is_the_centre_of_that_size(crop):
    pixels, side = noise(218, 178), int(crop[1:])
    top, left = (218 - side) // 2, (178 - side) // 2
    by_hand = pixels[top : top + side, left : left + side]
    assert np.array_equal(square_crop_resize(Image.fromarray(pixels), crop, side), by_hand)


def test_square_is_the_largest_and_none_is_the_whole():
    striped = np.zeros((4, 8, 3), np.uint8)
    striped[:, 2:6] = 255
    assert square_crop_resize(Image.fromarray(striped), "square", 4).min() == 255
    assert square_crop_resize(Image.fromarray(striped), "none", 4).mean() == pytest.approx(127.5, abs=3)


def test_resizing_is_antialiased():
    checkerboard = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = square_crop_resize(Image.fromarray(checkerboard), "square", 16)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    grey, colour = noise(8, 8, channels=1), noise(8, 8)
    save(tmp_path / "grey.png", grey)
    assert np.array_equal(one(tmp_path / "grey.png"), grey.repeat(3, 2))
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(one(tmp_path / "deep.png"), grey.repeat(3, 2))
    alpha = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8)[None, :, None].repeat(8, 0)
    save(tmp_path / "alpha.png", np.concatenate([colour, alpha], 2))
    assert np.array_equal(one(tmp_path / "alpha.png"), np.where(alpha == 0, 255, colour))
    Image.fromarray(colour).quantize(256).save(tmp_path / "palette.png")
    assert np.abs(one(tmp_path / "palette.png").astype(int) - colour).max() < 128
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(one(tmp_path / "moving.webp"), np.asarray(frames[0]))


def test_exif_orientation_is_applied(tmp_path):
    pixels = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    save(tmp_path / "turned.png", pixels, exif=exif)
    assert np.array_equal(one(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_cut_off_image_is_named(tmp_path, suffix):
    save(tmp_path / f"whole.{suffix}", noise(64, 64))
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"cut.{suffix}: not a readable image"):
        one(tmp_path / f"cut.{suffix}")


# --- more than 8 bits

LEVELS = [1000, 65400, 30000, 32768]  # of 65,535; alpha is the last: 0.5
ROUNDED = [4, 254, 117]


def png(pixels: np.ndarray, clear: tuple[int, ...] = ()) -> bytes:
    """Encode (H, W, C) uint16 as PNG of 16 bits per channel; `clear` is the transparent colour."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    parts += chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray) -> bytes:
    """Encode (H, W, C) as TIFF without compression, of the array's kind of numbers."""
    height, width, channels = pixels.shape
    data, bits = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(), 8 * pixels.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    fields = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [2 if channels > 2 else 1], 273: [0]}
    fields |= {277: [channels], 278: [height], 279: [len(data)], 339: [kind] * channels}
    fields |= {338: [2]} if channels == 4 else {}
    fields[273] = [start := 10 + 12 * len(fields) + 4 + 2 * 2 * channels * (channels > 2)]
    table, long = b"", b""
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, long = struct.pack("<I", start - 4 * channels + len(long)), long + packed
        table += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + table + b"\0\0\0\0" + long + data


def decoded(data: bytes) -> tuple[list[int], set[str]]:
    """Return the first pixel and what was converted."""
    converted: list[str] = []
    return np.asarray(decode_rgb(data, converted))[0, 0].tolist(), set(converted)


def two_by_two(channels: int, dtype: type = np.uint16) -> np.ndarray:
    """Return pixels of LEVELS, the last of them white and opaque."""
    pixels = np.zeros((2, 2, channels), dtype)
    pixels[:] = np.array(LEVELS[: channels - 1] + LEVELS[3:] if channels in (2, 4) else LEVELS[:channels])
    return pixels


@pytest.mark.parametrize("encode", [png, tiff])
def test_colours_of_16_bits_are_rounded(encode):
    assert decoded(encode(two_by_two(3))) == (ROUNDED, {"of 16 bits (rounded to 8)"})
    assert decoded(encode(two_by_two(1))) == ([4, 4, 4], {"of 16 bits (rounded to 8)", "grey"})
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    assert np.array_equal(np.asarray(decode_rgb(encode(pixels), [])), np.rint(pixels / 257))


def test_16_bits_with_alpha_are_laid_over_white_before_they_are_rounded():
    share = LEVELS[3] / 65535
    over_white = [round((share * level + (1 - share) * 65535) / 257) for level in LEVELS[:3]]
    both = {"with alpha (laid over white)", "of 16 bits (rounded to 8)"}
    assert decoded(png(two_by_two(4))) == decoded(tiff(two_by_two(4))) == (over_white, both)
    assert decoded(png(two_by_two(2))) == (over_white[:1] * 3, both | {"grey"})


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_becomes_white(channels):
    pixels = two_by_two(channels)
    pixels[1, 1] += 1  # another colour, if only by one of 65,535
    image = np.asarray(decode_rgb(png(pixels, tuple(LEVELS[:channels])), []))
    assert (image[0, 0] == 255).all() and image[1, 1].tolist() == (ROUNDED if channels == 3 else [4, 4, 4])


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
def test_numbers_without_a_known_white_are_refused(dtype):
    with pytest.raises(InputError, match="^a.tif: .*pixels cannot be brought to 8 bits.*convert it to an 8-bit"):
        read_square(tiff(two_by_two(1, dtype)), "a.tif", "square", 2, [])


def test_a_turned_image_of_16_bits_is_upright():
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 4)).astype(np.uint16)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    turned = np.asarray(decode_rgb(file.getvalue(), []))[..., 0]
    assert np.array_equal(turned, np.rot90(np.rint(pixels / 257), -1))


def test_an_image_smaller_than_the_size_is_counted():
    for side, words in ((7, ["enlarged"]), (8, []), (9, [])):
        converted: list[str] = []
        file = io.BytesIO()
        Image.fromarray(noise(side, side + 4)).save(file, "BMP")
        assert read_square(file.getvalue(), "a.bmp", "square", 8, converted).shape == (8, 8, 3)
        assert converted == words
