"""Translation of what the discriminator sees: which offsets are drawn, and where pixels and gradients go."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from degrain.models.gan.augment import offsets, translated


def sliced(images: Tensor, offsets: Tensor, most: int) -> Tensor:
    """Move images one by one, each as a slice of its padded self."""
    height, width = images.shape[-2:]
    corners = (most - offsets).long().tolist()
    padded = zip(F.pad(images, (most,) * 4), corners, strict=True)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in padded])


@pytest.mark.parametrize(("height", "width", "most"), [(4, 6, 3), (8, 8, 1), (5, 3, 7)])
def test_translation_equals_slices_of_each_padded_image(height, width, most):
    images = torch.randn(50, 3, height, width)
    by = offsets(torch.rand(50, 2), most)
    by[:2] = torch.tensor([[-most, most], [most, -most]])
    assert torch.equal(translated(images, by, most), sliced(images, by, most))
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(translated(channels_last, by, most), sliced(images, by, most))


def test_translated_images_are_moved_by_whole_pixels_with_zeros_where_nothing_was():
    images = torch.randn(3, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    moved = translated(images, torch.tensor([[0, 0], [1, -2], [-3, 0]]), most=3)
    by_hand = torch.zeros(3, 2, 4, 6, dtype=torch.float64)
    by_hand[0] = images[0].detach()
    by_hand[1, :, 1:, :4] = images[1, :, :3, 2:].detach()
    by_hand[2, :, :1] = images[2, :, 3:].detach()
    assert torch.equal(moved.detach(), by_hand)
    moved.sum().backward()
    assert images.grad[2].sum() == 2 * 6 and images.grad[0].eq(1).all()  # what left the picture is not judged


def test_a_gradient_penalty_passes_through_a_translation():
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    by = torch.tensor([[1, 0], [-2, 1]])
    assert torch.autograd.gradcheck(lambda x: translated(x, by, 2), images)
    assert torch.autograd.gradgradcheck(lambda x, w: (translated(x, by, 2) * w).square(), (images, weight))


@pytest.mark.parametrize("most", [1, 3, 16])
def test_offsets_are_whole_numbers_equally_likely_from_minus_most_to_most(most):
    choices = 2 * most + 1
    grid = (torch.arange(100 * choices, dtype=torch.float64) + 0.5) / (100 * choices)  # 100 for each choice
    values, counts = offsets(grid, most).unique(return_counts=True)
    assert values.tolist() == list(range(-most, most + 1)) and counts.eq(100).all()
    ends = offsets(torch.tensor([0.0, 1 - 2**-24]), most)  # the least and the largest of torch.rand
    assert ends.tolist() == [-most, most]
    assert offsets(torch.rand(4, 2), most).shape == (4, 2)
