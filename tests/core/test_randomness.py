"""Streams that depend on where one is alone."""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from degrain.models.core import randomness
from degrain.models.core.errors import InputError
from degrain.models.core.randomness import Noise, generator, image_numbers, noise_of_images


def draw(*key: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, generator=generator(*key))


def test_a_stream_is_a_function_of_its_key():
    draw(7, 7)  # what was drawn before plays no part
    assert torch.equal(draw(0, 12), draw(0, 12))
    keys = list(product(range(8), range(2), range(8)))
    assert len({tuple(draw(*key).tolist()) for key in keys}) == len(keys)
    assert not torch.equal(draw(0, 12), draw(1, 2))


def test_streams_are_independent():
    streams = torch.stack([draw(seed, stream, n, count=2000) for seed, stream, n in product((0, 1), (0, 1), range(4))])
    correlation = streams.corrcoef() - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / 2000**0.5
    assert torch.stack([draw(0, 0, n, count=1) for n in range(2000)]).std().item() == pytest.approx(1, abs=0.08)


def images(numbers: Iterable[int], shape: tuple[int, ...], seed: int = 3, stream: int = 1) -> torch.Tensor:
    return noise_of_images(seed, image_numbers(numbers), stream, shape)


@pytest.mark.parametrize("shape", [(3, 4, 4), (5,), (1,)])
@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_noise_of_an_image_is_independent_of_its_batch(at_once, shape, monkeypatch):
    whole = images(range(10), shape)
    assert whole.shape == (10, *shape)
    monkeypatch.setattr(randomness, "values_at_once", lambda device: at_once)
    assert torch.equal(images(range(10), shape), whole)
    assert torch.equal(torch.cat([images([n], shape) for n in range(10)]), whole)
    assert torch.equal(images([7, 2], shape), whole[[7, 2]])


def test_noise_of_a_smaller_shape_is_the_beginning():
    """Held-out codes have several draws, and the first is that of `Pipeline.reconstruct`."""
    whole = images(range(3), (1000,))
    for size in (1, 5, 256, 257, 999):
        assert torch.equal(images(range(3), (size,)), whole[:, :size])


def test_noise_of_an_image_differs_between_seeds_streams_and_large_numbers():
    keys = list(product((0, 1, 2**32, 2**64 + 1), (0, 1, 2**32 - 1)))
    numbers = [0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1]
    rows = torch.cat([images(numbers, (5,), seed, stream) for seed, stream in keys])
    assert len(rows.unique(dim=0)) == len(keys) * len(numbers)


def test_numbers_of_images_fit_64_bits():
    with pytest.raises(InputError, match=r"^number of an image 9223372036854775808: must be below 2\^63$"):
        image_numbers([0, 2**63])


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Noise of two seeds, two streams and 24 images, (96, 3072), in float64."""
    rows = [images(range(24), (3, 32, 32), seed, stream) for seed, stream in product((0, 1), (0, 1))]
    return torch.cat(rows).flatten(1).double().numpy()


def test_noise_of_images_is_standard_normal(noise):
    assert kstest(noise.ravel(), "norm").pvalue > 0.01
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((noise**power).mean() - moment) < 4 * (variance / noise.size) ** 0.5


def test_noise_of_images_has_no_correlation(noise):
    """Of images, streams and seeds; of a value with those beside it, and of the two of one radius; and of squares."""
    for values in (noise, noise**2):
        values = (values - values.mean()) / values.std()
        across = np.corrcoef(values)[np.triu_indices(len(values), 1)]
        assert abs(across).max() < 5.5 / noise.shape[1] ** 0.5
        assert abs(across.std() * noise.shape[1] ** 0.5 - 1) < 0.05
        for lag in (1, 2, 3, 4, 32, 64, 128, 256, 1024):
            assert abs((values[:, lag:] * values[:, :-lag]).mean()) < 4 / (noise.size - 96 * lag) ** 0.5


@pytest.mark.parametrize("draw", [Noise.normal, Noise.uniform])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_union_of_the_parts_is_the_whole(count, draw):
    whole = draw(Noise(5, 1, 3), 8, 3, 2)
    parts = [draw(Noise(5, 1, 3, part=part, parts=count), 8 // count, 3, 2) for part in range(count)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)  # row i of a part is row i * parts + part


def test_noise_of_a_step_goes_on_and_depends_on_its_key():
    noise = Noise(5, 1, 3)
    assert not torch.equal(noise.normal(4), noise.normal(4))
    assert torch.equal(Noise(5, 1, 3).normal(4), Noise(5, 1, 3).normal(4))
    assert not torch.equal(Noise(5, 1, 4).normal(4), Noise(5, 1, 3).normal(4))
    assert 0 <= noise.uniform(100).min() and noise.uniform(100).max() < 1
