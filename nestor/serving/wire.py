"""Messages between the server and a network in a process of its own: JSON, then tensors as safetensors."""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from torch import Tensor

    from nestor.serving.network import Input

_SIZES = struct.Struct("<II")


def send(channel: socket.socket, message: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Send a message.

    Raises:
        OSError: nobody listens any more, or not soon enough.
    """
    text, raw = json.dumps(message).encode(), save(dict(tensors)) if tensors else b""
    channel.sendall(b"".join((_SIZES.pack(len(text), len(raw)), text, raw)))


def receive(channel: socket.socket) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Wait for the next message.

    Raises:
        EOFError: the other side is gone.
        OSError: it did not answer soon enough.
    """
    text, raw = _SIZES.unpack(_exactly(channel, _SIZES.size))
    message = json.loads(_exactly(channel, text))
    return message, load(bytes(_exactly(channel, raw))) if raw else {}


def memory(takes: Input, rows: int, file: int | None = None) -> tuple[Tensor, int]:
    """A tensor of so many items that two processes share, and the descriptor that opens it for the other one.

    Args:
        takes: what an item is.
        rows: how many there is room for.
        file: the descriptor, where the other process has made it.
    """
    blank = torch.empty(rows, *takes.shape, dtype=takes.dtype, device="meta")
    size = blank.numel() * blank.element_size()
    if file is None:
        file = _unnamed()
        os.truncate(file, size)
    # The mapping stays for as long as the tensor does.
    return torch.frombuffer(mmap.mmap(file, size), dtype=takes.dtype).view(blank.shape), file


def _unnamed() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nestor")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _exactly(channel: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    left = memoryview(found)
    while left:
        got = channel.recv_into(left)
        if not got:
            raise EOFError("the other side is gone.")
        left = left[got:]
    return found
