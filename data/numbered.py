"""Number the images of sources that make them from a seed and a number."""

from degrain.models.core.errors import InputError

FIRST_ITEM = {"train": 0, "valid": 10**9, "test": 2 * 10**9}  # far apart, so that a larger count changes no image


class NumberedSource:
    """Provide any number of images; image i of a seed is the same for every count.

    Args:
        what: Name of the images in error messages.
        count: Images to train on.
        valid_count: Images to validate on, and as many to test on.
        seed: Another seed makes other images.

    Raises:
        InputError: A count or seed is out of range.
    """

    def __init__(self, what: str, count: int, valid_count: int, seed: int) -> None:
        for name, value, least in (("count", count, 1), ("valid_count", valid_count, 1), ("seed", seed, 0)):
            if not least <= value <= 10**9:
                raise InputError(f"{what}: {name} {value} is not in {least}..{10**9}")
        self.what, self.seed, self.converted = what, seed, ()
        self.counts = {"train": count, "valid": valid_count, "test": valid_count}

    def items(self, split: str) -> range:
        """Return the numbers of the images of "train", "valid" or "test"; no two splits share one."""
        if split not in FIRST_ITEM:
            raise InputError(f"{self.what}: no split {split!r}; choose from {', '.join(FIRST_ITEM)}")
        return range(FIRST_ITEM[split], FIRST_ITEM[split] + self.counts[split])

    def remarks(self) -> list[str]:
        """Return nothing: each split has images of its own."""
        return []
