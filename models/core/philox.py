"""Philox4x64-10, a counter-based generator: a block of random words is a function of a key and a counter alone.

J. Salmon, M. Moraes, R. Dror, D. Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011). On a CPU the words are
numpy's. Elsewhere they are computed by integer operations of PyTorch, in the 64 bits of int64, and are the same: words
are equal on every device. Noise that is made of them may differ in its last bits: log, sqrt, cos and sin do.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10
LOW = 2**32 - 1  # mask of the lower half of a word
CHUNK = 128  # words that noise is made of together: it ends as one pleases, and begins the same

Key = Sequence[int]
"""Two integers in [0, 2^64)."""


def words_of_images(key: Key, numbers: Tensor, stream: int, count: int) -> Tensor:
    """Return random words (B, count), int64, on the device of the numbers (B,): of counters (position, stream, number).

    Positions count from 1, as numpy's do.
    """
    if numbers.device.type == "cpu":
        philox = np.random.Philox(key=np.array(key, np.uint64))  # of a list numpy makes float64, and loses bits
        state, words = philox.state, np.empty((len(numbers), count), np.uint64)
        for row, number in zip(words, numbers.tolist(), strict=True):
            state["state"]["counter"][:] = 0, stream, number, 0
            philox.state = state
            row[:] = philox.random_raw(count)
        return torch.from_numpy(words.view(np.int64))
    return words_by_torch(key, numbers, stream, count)


def words_by_torch(key: Key, numbers: Tensor, stream: int, count: int) -> Tensor:
    """Return what `words_of_images` returns, for any device."""
    positions = torch.arange(1, -(-count // 4) + 1, device=numbers.device)
    counters = torch.zeros(4, len(numbers), len(positions), dtype=torch.int64, device=numbers.device)
    counters[0], counters[1], counters[2] = positions, stream, numbers[:, None]
    return rearrange(philox4x64(counters, key), "four b p -> b (p four)")[:, :count]


def philox4x64(counters: Tensor, key: Key) -> Tensor:
    """Return random words (4, ...) of counters (4, ...), both uint64 in the bits of int64.

    One round, with hi and lo the halves of a product of 128 bits:
        x'0 = hi(x2 M1) ^ x1 ^ key0        x'1 = lo(x2 M1)
        x'2 = hi(x0 M0) ^ x3 ^ key1        x'3 = lo(x0 M0)
    """
    multipliers, lower, upper, *round_keys = constants(key, counters)
    even, odd = counters[0::2], counters[1::2]
    for round_key in round_keys:
        high, low = upper_product(even, lower, upper), even * multipliers
        even, odd = high.flip(0) ^ odd ^ round_key, low.flip(0)
    return rearrange([even, odd], "parity pair ... -> (pair parity) ...")


def constants(key: Key, counters: Tensor) -> tuple[Tensor, ...]:
    """Return the multipliers, their lower and upper halves, and the keys of the rounds: each (2, 1, ...)."""
    halves = [[m & LOW for m in MULTIPLIERS], [m >> 32 for m in MULTIPLIERS]]
    keys = [[(k + i * step) % 2**64 for k, step in zip(key, KEY_STEPS, strict=True)] for i in range(ROUNDS)]
    words = torch.from_numpy(np.array([MULTIPLIERS, *halves, *keys], np.uint64).view(np.int64))
    return words.view(-1, 2, *[1] * (counters.dim() - 1)).to(counters.device, non_blocking=True).unbind()


def upper_product(x: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
    """Return the upper 64 bits of the products of x and y0 + 2^32 y1: x in [0, 2^64), y0 and y1 in [0, 2^32)."""
    x0, x1 = x & LOW, x >> 32 & LOW
    first = x1 * y0 + (x0 * y0 >> 32 & LOW)  # no sum exceeds 64 bits
    second = x0 * y1 + (first & LOW)
    return x1 * y1 + (first >> 32 & LOW) + (second >> 32 & LOW)


def normal(words: Tensor) -> Tensor:
    """Return standard normal noise (B, 2 count), float32, from words (B, count), by Box and Muller.

    Of CHUNK words the first half of their 32-bit halves are a, the second b: radius = sqrt(-2 log u), at most 6.7, with
    u = (a mod 2^31 + 1/2) / 2^31; angle = pi b / 2^31, b signed. `count` is a multiple of CHUNK.
    """
    a, b = words.view(torch.int32).unflatten(1, (-1, 2, CHUNK)).unbind(2)
    radius = (a & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2**-31).log_().mul_(-2).sqrt_()
    angle = b.to(torch.float32).mul_(math.pi / 2**31)
    noise = torch.empty(*a.shape[:2], 2, CHUNK, dtype=torch.float32, device=words.device)
    torch.mul(radius, angle.cos(), out=noise[:, :, 0])
    torch.mul(radius, angle.sin_(), out=noise[:, :, 1])
    return noise.flatten(1)
