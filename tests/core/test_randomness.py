"""Streams that depend on where one is alone."""

from itertools import product

import pytest
import torch

from degrain.models.core.randomness import Noise, generator, noise_of_images


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


def test_noise_of_an_image_is_independent_of_its_batch():
    whole = noise_of_images(3, range(10), 1, (3, 4, 4))
    assert whole.shape == (10, 3, 4, 4)
    assert torch.equal(torch.cat([noise_of_images(3, [n], 1, (3, 4, 4)) for n in range(10)]), whole)
    assert torch.equal(noise_of_images(3, [7, 2], 1, (3, 4, 4)), whole[[7, 2]])


def test_noise_of_an_image_differs_between_seeds_and_streams():
    rows = [noise_of_images(seed, range(4), stream, (5,)) for seed, stream in product((0, 1), (0, 1))]
    assert len(torch.cat(rows).unique(dim=0)) == 16


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
