"""Reader of W&B's run files: wandb 0.31 has a writer for them only."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
FILE_HEADER = 7  # b":W&B", a magic number (2), a version (1)
CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(run_dir: Path) -> list[Record]:
    """Return all records under RUN_DIR/wandb, part after part."""
    wandb.teardown()  # ends W&B's own process, which may still be writing after run.finish() has returned
    files = sorted(Path(run_dir).glob("wandb/*run-*/run-*.wandb"))
    return [Record.FromString(entry) for file in files for entry in _entries(file.read_bytes())]


def _entries(log: bytes) -> Iterator[bytes]:
    """Yield the entries of a LevelDB log: blocks of 32 KiB hold chunks, an entry is one FULL or FIRST MIDDLE* LAST."""
    position, entry = FILE_HEADER, b""
    while position + CHUNK_HEADER.size <= len(log):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < CHUNK_HEADER.size:  # too short for a chunk: padding
            position += left_in_block
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(log, position)
        position += CHUNK_HEADER.size + length
        if position > len(log):  # the writer was killed in the middle
            return
        chunk = log[position - length : position]
        entry = chunk if kind in (FULL, FIRST) else entry + chunk
        if kind in (FULL, LAST):
            yield entry


def history(records: list[Record]) -> list[dict[str, Any]]:
    """Return the logged rows, each a dictionary by name; a picture NAME is at NAME/path, below files/."""
    rows = [record.history.item for record in records if record.HasField("history")]
    return [{"/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def config(records: list[Record]) -> dict[str, Any]:
    """Return the final config: each update by its top-level name, later ones win."""
    updates = [record.config.update for record in records if record.HasField("config")]
    return {item.key: json.loads(item.value_json) for update in updates for item in update}


def run_ids(records: list[Record]) -> list[str]:
    """Return the run id of each part."""
    return [record.run.run_id for record in records if record.HasField("run")]


def labels(records: list[Record]) -> dict[str, Any]:
    """Return name, group, tags and notes of the first part."""
    run = next(record.run for record in records if record.HasField("run"))
    return {"name": run.display_name, "group": run.run_group, "tags": list(run.tags), "notes": run.notes}


def summary(records: list[Record]) -> dict[str, Any]:
    """Return the summary: the last logged values, and those that were set."""
    values: dict[str, Any] = {}
    for record in records:
        if record.HasField("history"):
            values |= history([record])[0]
        for item in record.summary.update if record.HasField("summary") else []:
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return values


def artifacts(records: list[Record]) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Return name, aliases and metadata of each artifact that was logged."""
    found = [record.artifact for record in records if record.HasField("artifact")]
    return [(item.name, list(item.aliases), json.loads(item.metadata)) for item in found]
