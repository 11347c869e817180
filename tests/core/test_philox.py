"""Words of the published generator, and normal noise from them."""

import math

import numpy as np
import pytest
import torch

from degrain.models.core.philox import CHUNK, normal, philox4x64, words_by_torch, words_of_images

MOST = 2**64 - 1

PUBLISHED = {  # Random123's known answers for philox4x64-10: counter, key, words
    "zeros": (
        [0, 0, 0, 0],
        (0, 0),
        [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
    ),
    "ones": (
        [MOST] * 4,
        (MOST, MOST),
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
    ),
    "digits of pi": (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
}


def as_int64(words: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64))


@pytest.mark.parametrize("name", PUBLISHED)
def test_words_are_the_published_ones(name):
    counter, key, words = PUBLISHED[name]
    assert torch.equal(philox4x64(as_int64(counter), key), as_int64(words))
    several = philox4x64(as_int64(counter)[:, None, None].repeat(1, 2, 3), key)
    assert torch.equal(several, as_int64(words)[:, None, None].expand(4, 2, 3))


@pytest.mark.parametrize("count", [1, 4, 7, 3000])
def test_words_of_every_device_are_those_of_a_cpu(count):
    """They are computed by PyTorch elsewhere, by numpy on a CPU."""
    numbers = torch.tensor([0, 1, 2**32, 2**63 - 1, 7])
    for key, stream in (((0, 0), 0), ((MOST, 77), 3), ((2**63, 2**32 - 1), 2**32)):
        words = words_of_images(key, numbers, stream, count)
        assert words.shape == (5, count)
        assert torch.equal(words_by_torch(key, numbers, stream, count), words)


def test_noise_is_box_and_mullers():
    words = words_of_images((3, 5), torch.arange(10), 0, 40 * CHUNK)
    halves = torch.from_numpy(words.numpy().view(np.uint32).astype(np.float64)).view(10, 40, 2, CHUNK)
    radius = (-2 * ((halves[:, :, 0] % 2**31 + 0.5) / 2**31).log()).sqrt()
    angle = 2 * math.pi * halves[:, :, 1] / 2**32
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)
    assert torch.allclose(normal(words).double(), expected, atol=5e-5)  # u near 1 is rounded to 2^-24


@pytest.mark.parametrize("word", [0, MOST, 2**63, 2**31 - 1, 2**32 - 1])
def test_noise_of_extreme_words_is_finite(word):
    noise = normal(as_int64([word] * CHUNK)[None])
    assert noise.view(2, CHUNK).norm(dim=0).max() < 6.67  # sqrt(2 log 2^32)
