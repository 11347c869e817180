"""Statistics of images on disk, one file per key, so that the same images are measured once."""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from degrain.models.core.errors import InputError
from degrain.models.core.files import replacing

FORMAT = 1  # of the files: raise it when a network computes something else


@dataclass(frozen=True)
class StatisticsKey:
    """Everything that statistics depend on; a file is used only if all of it agrees."""

    dataset: str  # identity of the images: source, place, number, and whatever else would change them
    split: str  # train, valid or test
    crop: str
    size: int  # side in pixels
    net: str  # identity of the feature network (FeatureNet.identity), or `pixels` if there is none
    kind: str  # of statistics: features, moments, spectrum

    @property
    def text(self) -> str:
        """The key and the format as one line of JSON, which the file holds too."""
        return json.dumps(asdict(self) | {"format": FORMAT}, sort_keys=True)

    @property
    def filename(self) -> str:
        """Name of the file: readable at the front, a hash of the key at the end."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        net = re.sub(r"[^\w.-]", "_", self.net)[-60:]  # an import path holds a colon
        return f"{self.split}-{self.crop}-{self.size}-{net}-{self.kind}-{digest}.npz"


def cached_statistics(
    folder: str | Path,
    key: StatisticsKey,
    compute: Callable[[], dict[str, Tensor]],
    agree: Callable[[dict[str, Tensor] | None], dict[str, Tensor] | None] = lambda kept: kept,
) -> dict[str, Tensor]:
    """Return the statistics of the key, from the file of an earlier call or from `compute`: named tensors, on the CPU.

    A damaged file is computed anew and replaced, and a printed line says so. If the file cannot be written, a line says
    so and the result is returned all the same. Several processes may compute at once; none reads half a file.

    Args:
        folder: created if it does not exist.
        key: everything that the statistics depend on.
        compute: returns named tensors, such as {"features": features}.
        agree: broadcasts from the first process, if all processes have to compute together or not at all.
    """
    path = Path(folder) / key.filename
    if (kept := agree(_read(path, key))) is not None:
        return kept
    statistics = {name: tensor.detach().cpu() for name, tensor in compute().items()}
    try:
        with replacing(path) as part:
            np.savez(part, **{name: tensor.numpy() for name, tensor in statistics.items()}, key=np.array(key.text))
    except InputError as error:
        print(f"statistics: not kept: {error}", flush=True)
    return statistics


def _read(path: Path, key: StatisticsKey) -> dict[str, Tensor] | None:
    """Read the statistics of the key; None if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:  # a zip archive, which checks its contents' CRC
            arrays = {name: file[name] for name in file.files}
        if arrays.pop("key").item() != key.text:
            raise ValueError("it is of another key")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        print(f"statistics: computing {path} anew: it is damaged ({error})", flush=True)
    return None
