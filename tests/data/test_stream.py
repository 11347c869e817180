"""Test the stream of training images, and batches from cached arrays."""

import itertools

import numpy as np
import pytest
import torch

from degrain.data.stream import CachedImages, DeviceImages, ShuffledStream, on_device
from degrain.models.core.errors import InputError


def stream(start=0, stop=100, n=7, batch_size=4, seed=0, flip=True, **ranks):
    return list(ShuffledStream(n, batch_size, start, stop, seed, flip, **ranks))


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


# --- the stream


def test_order_depends_on_seed_and_position_alone():
    whole = flat(stream())
    assert whole == flat(stream())
    for start in (4, 13, 50):
        assert flat(stream(start, stop=start + 40)) == whole[start : start + 40]
    assert flat(stream(batch_size=10)) == whole
    assert flat(stream(seed=1)) != whole


def test_each_image_once_per_n_positions():
    elements = flat(stream(stop=7 * 8, batch_size=8))
    for epoch in range(8):
        assert sorted(index for index, _ in elements[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert len({tuple(elements[epoch * 7 : epoch * 7 + 7]) for epoch in range(8)}) == 8


@pytest.mark.parametrize("batch_size", [4, 20])  # smaller and larger than the data set
def test_processes_share_the_same_batches(batch_size):
    alone = stream(batch_size=batch_size)
    shares = [stream(batch_size=batch_size, rank=rank, world=2) for rank in range(2)]
    assert alone == [flat(zip(first, second, strict=True)) for first, second in zip(*shares, strict=True)]


@pytest.mark.parametrize(("start", "stop", "batches"), [(0, 12, 3), (0, 13, 4), (5, 12, 2), (12, 12, 0), (13, 12, 0)])
def test_length_counts_the_batches_left_and_all_are_complete(start, stop, batches):
    assert len(ShuffledStream(7, 4, start, stop, 0, True)) == batches
    assert [len(batch) for batch in stream(start, stop)] == [4] * batches


def test_half_are_flipped_or_none():
    flips = [flip for _, flip in flat(stream(stop=4000, n=100))]
    assert 0.45 < np.mean(flips) < 0.55
    assert len({tuple(flips[epoch * 100 : epoch * 100 + 100]) for epoch in range(40)}) == 40
    assert not any(flip for _, flip in flat(stream(flip=False)))
    order = [index for index, _ in flat(stream())]
    assert order == [index for index, _ in flat(stream(flip=False))]


def test_batch_size_must_be_a_multiple_of_the_processes():
    with pytest.raises(InputError, match="--data.batch_size 4: choose a multiple of the 3 processes"):
        stream(rank=0, world=3)


# --- batches


def arrays(count=6, size=4):
    rng = np.random.default_rng(0)
    rgb = (count, size, size, 3)
    shapes = {"image": rgb, "regions": rgb[:3], "clean": rgb}
    return {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}


def test_batch_is_channels_first_uint8_in_the_requested_order():
    cache = arrays()
    batch = CachedImages(cache).__getitems__([4, 0, (2, False)])
    assert batch["index"].tolist() == [4, 0, 2]
    for name in ("image", "clean"):
        assert batch[name].dtype == torch.uint8 and batch[name].is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(batch[name].numpy(), cache[name][[4, 0, 2]].transpose(0, 3, 1, 2))
    assert np.array_equal(batch["regions"].numpy(), cache["regions"][[4, 0, 2]])


def test_a_flip_mirrors_all_arrays_and_leaves_the_cache():
    cache, before = arrays(), arrays()
    batch = CachedImages(cache).__getitems__([(1, True), (1, False)])
    for name in cache:
        flipped, straight = batch[name]
        assert torch.equal(flipped, straight.flip(-1)) and not torch.equal(flipped, straight)
        assert np.array_equal(cache[name], before[name])


def test_one_item_equals_its_row_of_a_batch():
    images = CachedImages(arrays())
    batch = images.__getitems__([3, (5, True)])
    assert len(images) == 6
    for row, item in enumerate([3, (5, True)]):
        assert all(torch.equal(images[item][name], batch[name][row]) for name in batch)


# --- batches on a device


@pytest.mark.parametrize("flip", [True, False])
def test_batches_of_a_device_are_those_of_the_host(flip):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(256, size=(7, 4, 6, 3)), "regions": rng.integers(5, size=(7, 4, 6))}
    host = CachedImages({name: array.astype(np.uint8) for name, array in arrays.items()})
    device = DeviceImages(host, torch.device("cpu"))
    assert len(device) == len(host) == 7 and host.bytes == 7 * 4 * 6 * 4
    for elements in stream(3, 60, flip=flip, rank=1, world=2):
        theirs, ours = host.__getitems__(elements), device.__getitems__(elements)
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            assert torch.equal(ours[name], values) and ours[name].dtype == values.dtype, name
            assert ours[name].stride() == values.stride(), name


def test_an_array_is_copied_in_parts(tmp_path):
    array = np.arange(22, dtype=np.uint8).reshape(11, 2)
    np.save(tmp_path / "a.npy", array)
    copy = on_device(np.load(tmp_path / "a.npy", mmap_mode="r"), torch.device("cpu"), rows=4)
    assert copy.tolist() == array.tolist()
