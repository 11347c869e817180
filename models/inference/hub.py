"""Weights from the Hugging Face Hub: hf://USER/NAME, and with all parts hf://USER/NAME@REVISION/FILE.

huggingface_hub keeps what it has downloaded in its own cache, and loads it from there without a connection.
"""

import re
from pathlib import Path

from degrain.models.core.errors import InputError, first_line

SCHEME = "hf://"

WEIGHTS = "model.safetensors"  # in a repository of the hub, and in a folder that is to become one

ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")

REASONS = {
    "GatedRepoError": "its owner must grant you access first, and `hf auth login` must have your token",
    "RepositoryNotFoundError": "there is no such repository, or it is private and `hf auth login` must have your token",
    "RevisionNotFoundError": "it has no such revision",
    "RemoteEntryNotFoundError": "it has no such file",
    "LocalEntryNotFoundError": "the hub cannot be reached, and there is no copy in the cache",
}
"""Class of huggingface_hub's error -> what it means; the first one that fits counts."""


def downloaded(address: str) -> Path:
    """Return the path of a file of the hub, downloaded unless the cache has it.

    Args:
        address: hf://USER/NAME, for its model.safetensors, or hf://USER/NAME@REVISION/FILE.

    Raises:
        InputError: no such address, no huggingface_hub, no connection, or the hub refuses.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(f"{address}: is no address of the hub; write hf://USER/NAME or hf://USER/NAME@REVISION/FILE")
    repository, revision, file = found["repository"], found["revision"] or "main", found["file"] or WEIGHTS
    by_hand = f"download https://huggingface.co/{repository}/resolve/{revision}/{file} and give its path"
    try:
        from huggingface_hub import hf_hub_download  # here: an extra, which nothing else needs
    except ImportError:
        raise InputError(
            f"{address}: needs huggingface_hub: python -m pip install huggingface_hub; or {by_hand}"
        ) from None
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # its own, and those of the HTTP library, which differ between its versions
        names = [kind.__name__ for kind in type(error).__mro__]
        reason = next((said for name, said in REASONS.items() if name in names), first_line(error))
        raise InputError(f"{address}: cannot be downloaded: {reason}; or {by_hand}") from error
