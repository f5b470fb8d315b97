"""What connects the ranks, and what the engines see of it."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rayreel.engine import Progress
from rayreel.wire import Request

JOIN = timedelta(minutes=10)
"""How long the ranks may take to find each other. One that ends is noticed at once."""

FOR_EVER = timedelta(days=365)
"""Peers wait for the next task in a collective, however long nobody asks for a video."""

GO, STOP, MESSAGE = range(3)
"""What rank 0 says: go on, stop here, or do what the message says that follows."""


def torch() -> Any:
    # Untyped: see `rayreel.engines.diffusion`.
    return importlib.import_module("torch")


def distributed() -> Any:
    return importlib.import_module("torch.distributed")


def connect(host: str, port: int) -> Any:
    """The store of rank 0."""
    return distributed().TCPStore(host, port, is_master=False, timeout=JOIN)


def device_of(kind: str, rank: int) -> str:
    """The device of a rank, of those that its process sees: all of the machine's, or its own."""
    return kind if kind == "cpu" else f"{kind}:{rank % torch().accelerator.device_count()}"


class Link:
    """The process groups of one rank: the default one of torch, to compute in, and one to be told
    what to do, so that waiting for a task is no hanging computation."""

    def __init__(self, store: Any, rank: int, world: int, host: str, device: str):
        dist = distributed()
        kind = torch().device(device).type
        if host == "127.0.0.1":
            _stay_on_loopback()
        backend = dist.get_default_backend_for_device(kind)
        # With gloo for what is on the CPU: sizes are exchanged without waiting for the GPU.
        backends = "cpu:gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{backend}"
        if kind != "cpu":
            torch().accelerator.set_device_index(torch().device(device).index)
        dist.init_process_group(
            backends, store=dist.PrefixStore("gang", store), rank=rank, world_size=world
        )
        self._control = dist.new_group(backend="gloo", timeout=FOR_EVER)

    def tell(self, kind: int, line: bytes = b"") -> None:
        """Rank 0 tells all others."""
        self._broadcast(torch().tensor([kind, len(line)]))
        if line:
            self._broadcast(torch().frombuffer(bytearray(line), dtype=torch().uint8))

    def hear(self) -> tuple[int, bytes]:
        """The others hear it."""
        head = self._broadcast(torch().zeros(2, dtype=torch().int64))
        kind, length = (int(value) for value in head)
        if not length:
            return kind, b""
        return kind, bytes(self._broadcast(torch().zeros(length, dtype=torch().uint8)).tolist())

    def meet(self) -> None:
        """Waits until all ranks are here."""
        distributed().barrier(group=self._control)

    def _broadcast(self, tensor: Any) -> Any:
        distributed().broadcast(tensor, src=0, group=self._control)
        return tensor


def _stay_on_loopback() -> None:
    """Both libraries would listen on an interface that other machines reach."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for library in ("GLOO", "NCCL") if names else ():
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", names[0])


class Gang:
    """The gang as an engine sees it, the same on each rank."""

    rank: int
    world: int
    device: str | None
    """Of this rank: `cuda:1` …; None: what the engine's settings say."""

    def meet(self) -> None:
        """Waits until all ranks are here, for as long as it takes."""
        raise NotImplementedError

    @contextmanager
    def loading(self) -> Generator[None]:
        """While the model is loaded. At the end all ranks have it."""
        raise NotImplementedError
        yield

    @contextmanager
    def together(self, request: Request, progress: Progress) -> Generator[None]:  # noqa: ARG002
        """While a request is done. All ranks must ask `progress` in the same places until
        `denoised`: there they go on together, or raise together. What is wrong with a request is to
        be said before, by rank 0 alone."""
        raise NotImplementedError
        yield

    def denoised(self, progress: Progress) -> None:
        """To be called after the last step: the rest is done by rank 0 alone."""
        raise NotImplementedError


class Alone(Gang):
    """No gang: one process."""

    rank = 0
    world = 1
    device = None

    def meet(self) -> None:
        pass

    @contextmanager
    def loading(self) -> Generator[None]:
        yield

    @contextmanager
    def together(self, request: Request, progress: Progress) -> Generator[None]:  # noqa: ARG002
        yield

    def denoised(self, progress: Progress) -> None:
        pass
