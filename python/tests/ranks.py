"""Gangs for tests: a process that has imported what takes seconds, and forks ranks.

    python -m tests.ranks

It says `ready`. For each line of its input, {"folder": …, "world": …}, it forks a rank 0, which
serves a worker over the pipes `to` and `from` of the folder and forks the other ranks. In the
folder, each rank writes its process id (`pid.1`) and a byte for each call of a denoiser
(`calls.1`), and does what it finds (`denoise.1`: what to do in the next call).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rayreel import serve
from rayreel.engines.wan import Wan
from rayreel.gang import Local, Seat, join
from rayreel.gang.launch import die_with, ending


class Told(Wan):
    """Counts, and does what the test says."""

    folder: Path

    def _place(self, pipe: Any, device: Any) -> None:
        super()._place(pipe, device)
        self._do("load")
        for model in (pipe.transformer, pipe.transformer_2):
            if model is not None:
                # Within the pass, when every rank has agreed to make it.
                model.condition_embedder.register_forward_pre_hook(self._called)
        for name, model in (("text", pipe.text_encoder), ("decode", pipe.vae.decoder)):
            model.register_forward_hook(self._changed(name))
        pipe.vae.quant_conv.register_forward_hook(self._changed("image"))

    def _called(self, *_: Any) -> None:
        with (self.folder / f"calls.{self.gang.rank}").open("a") as calls:
            calls.write(".")
        self._do("denoise")

    def _changed(self, name: str) -> Any:
        def changed(_model: Any, _args: Any, output: Any) -> Any:
            how = self._do(name)
            if how is None:
                return output
            if isinstance(output, tuple):
                return tuple(part * float(how) for part in output)  # pyright: ignore
            if not hasattr(output, "last_hidden_state"):
                return output * float(how)
            output.last_hidden_state *= float(how)
            return output

        return changed

    def _do(self, where: str) -> str | None:
        order = self.folder / f"{where}.{self.gang.rank}"
        if not order.exists():
            return None
        what = order.read_text()
        order.unlink()
        if what == "raise":
            raise RuntimeError("the cat has walked over the keyboard")
        if what == "run out of memory":
            raise importlib.import_module("torch").OutOfMemoryError("CUDA out of memory. Tried …")
        if what == "exit":
            os._exit(3)
        return what


def mark(path: Path, text: str) -> None:
    part = path.with_suffix(f".part{path.suffix}")
    part.write_text(text)
    part.rename(path)


class Forked(Local):
    """Ranks that were forked before this process has threads, and wait for their seats."""

    def __init__(self, folder: Path, world: int):
        self._waiting = [_wait_for_seat(folder) for _ in range(1, world)]

    def start(self, seat: Seat) -> Any:
        process, pipe = self._waiting.pop()
        os.write(pipe, json.dumps(vars(seat)).encode())
        os.close(pipe)
        return Fork(process)


class Fork:
    def __init__(self, process: int):
        self._process = process

    def wait(self) -> str:
        return ending(os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1]))

    def kill(self) -> None:
        # Not reaped before somebody waits, or dead already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)


def _wait_for_seat(folder: Path) -> tuple[int, int]:
    parent, (read, write) = os.getpid(), os.pipe()
    process = os.fork()
    if process:
        os.close(read)
        return process, write
    os.close(write)
    die_with(parent)
    said = os.read(read, 1 << 16)
    if not said:
        os._exit(0)
    seat = Seat(**json.loads(said))
    mark(folder / f"pid.{seat.rank}", str(os.getpid()))
    engine = Told()
    engine.folder = folder
    join(seat, lambda _name: engine)
    os._exit(1)


def _lead(folder: Path, world: int) -> None:
    for number, name, flags in (
        (0, "to", os.O_RDONLY),
        (1, "from", os.O_WRONLY),
        (2, "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        file = os.open(folder / name, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    engine = Told()
    engine.folder = folder
    mark(folder / "pid.0", str(os.getpid()))
    engine.launcher = Forked(folder, world)
    serve(engine)


def main() -> None:
    for name in ("torch.distributed", "transformers.models.umt5.modeling_umt5"):
        importlib.import_module(name)
    diffusers = importlib.import_module("diffusers")
    for name in ("WanPipeline", "WanImageToVideoPipeline", "ContextParallelConfig"):
        getattr(diffusers, name)
    importlib.import_module("rayreel.media")
    nursery = os.getpid()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        # Nobody waits for rank 0.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with(nursery)
            _lead(Path(order["folder"]), order["world"])
            sys.exit()


if __name__ == "__main__":
    main()
