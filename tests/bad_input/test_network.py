"""No script reaches for the network unless asked to."""

import errno
import os
import shlex
import socket
from typing import Any

import pytest

import sample
import train


def test_nothing_goes_to_the_network_unasked(home, monkeypatch):
    """Python's own sockets are watched; W&B's process beside it is told to be offline, see test_tracking.py."""
    asked: list[Any] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def here(host: Any) -> bool:
        return host in ("localhost", "127.0.0.1", "::1", None)

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not here(address[0]):
            asked.append(address)
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        connect(self, address)

    def resolve_here(host: Any, *args: Any, **options: Any) -> Any:
        if not here(host):
            asked.append(host)
            raise socket.gaierror(socket.EAI_AGAIN, "no network")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    for stage, tracking in (("vae", "off"), ("gan", "offline")):
        train.main(shlex.split(f"fit -c {stage}.yaml --name new-{stage} --model.budget 8 --wandb {tracking}"))
    train.main(shlex.split("test -c gan.yaml --evaluation.off true"))
    sample.main(shlex.split("runs/new-gan/last.ckpt --n 1 --export new.safetensors --out new.png"))
    assert asked == []
    with pytest.raises(OSError):
        socket.create_connection(("example.invalid", 443))
    assert asked == ["example.invalid"]
