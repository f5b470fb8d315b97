"""Wan2.2 at its true shapes with random weights: bare diffusers, the engine `wan`, and the whole
server, in one run; seconds a step, peak memory and seconds a video, with each cache and attention
backend.

    scripts/bench-gpu [--models 5b,a14b] [--sizes 480p,720p] [--steps N] [--quick] [--write FILE]
    scripts/bench-gpu --tiny        # the same on the CPU with tiny shapes, in a minute or two

Weights are made on the device: nothing is downloaded, and no checkpoint is written. Random weights
take as long as real ones; but a cache that watches how much changes decides otherwise on them, so
its row tells what its steps cost, not how many it would leave out of a real video.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import server
from bench.shapes import SHAPES, TINY, Shape, build
from rayreel import serve
from rayreel.engines import caching
from rayreel.engines.diffusion import diffusers, to_bytes, torch
from rayreel.engines.wan import NEGATIVE_PROMPT, Wan
from rayreel.media import write_video
from rayreel.wire import Request

PROMPT = "a red fox runs through deep snow"

BEGIN, END = "<!-- gpu figures: written by scripts/bench-gpu -->", "<!-- end of the gpu figures -->"

CACHES: dict[str, Any] = {
    "first-block": {"kind": "first-block", "threshold": 0.08},
    "taylorseer": {"kind": "taylorseer"},
    # Neutral ratios: it leaves out as much as its other settings let it.
    "magcache": {"kind": "magcache", "ratios": [1.0]},
    "sea": {"kind": "sea"},
}

ATTENTION = ("native", "_native_cudnn", "_native_flash", "flash", "_flash_3", "sage")


class Figures(NamedTuple):
    step: float
    """Seconds."""
    video: float
    """Seconds, from the request to the file."""
    peak: float
    """10^9 bytes of the GPU's memory; 0 without one."""


class RandomWan(Wan):
    """`wan`, with weights made up in place of a checkpoint's."""

    def __init__(self, shape: Shape):
        super().__init__()
        self._shape = shape

    def open(self, dtype: Any) -> Any:
        self.task = self._task()
        pipe = build(self._shape, self._device(), dtype)
        shift = self.settings.flow_shift or self.task.flow_shift
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, flow_shift=shift)
        caching.enable(pipe, self.settings.cache)
        return pipe


def write_index(folder: Path, shape: Shape) -> Path:
    """The one file of a checkpoint that the engine reads by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": "WanPipeline", "expand_timesteps": shape.boundary is None}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def bare(shape: Shape, size: tuple[int, int], steps: int, folder: Path) -> Figures:
    device = torch().device("cuda" if torch().cuda.is_available() else "cpu")
    dtype = torch().float32 if device.type == "cpu" else torch().bfloat16
    pipe = build(shape, device, dtype)
    scheduler = pipe.scheduler
    pipe.scheduler = scheduler.from_config(scheduler.config, flow_shift=shape.shift)
    pipe.set_progress_bar_config(disable=True)
    _run_bare(pipe, shape, size, 2, folder, device)
    return _run_bare(pipe, shape, size, steps, folder, device)


def _run_bare(
    pipe: Any, shape: Shape, size: tuple[int, int], steps: int, folder: Path, device: Any
) -> Figures:
    marks: list[float] = []

    def ended(_pipe: Any, _index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if device.type == "cuda":
            torch().cuda.synchronize()
        marks.append(time.perf_counter())
        return values

    if torch().cuda.is_available():
        torch().cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    film = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=size[0],
        height=size[1],
        num_frames=shape.frames,
        num_inference_steps=steps,
        guidance_scale=shape.guidance,
        guidance_scale_2=shape.guidance_2,
        generator=torch().Generator("cpu").manual_seed(1),
        output_type="pt",
        callback_on_step_end=ended,
    ).frames[0]
    request = Request("x", folder, PROMPT, *size, shape.frames, shape.fps, steps, 1, "mp4")
    write_video(request, map(to_bytes, film))
    seconds = time.perf_counter() - begun
    peak = torch().cuda.max_memory_allocated() / 1e9 if torch().cuda.is_available() else 0.0
    return Figures((marks[-1] - begun) / steps, seconds, peak)


def engine(
    shape: Shape, size: tuple[int, int], steps: int, folder: Path, settings: dict[str, Any]
) -> Figures:
    """Through the SDK: the engine is told and answers as if by its worker."""
    made = RandomWan(shape)
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    answers = os.fdopen(from_read, "rb")

    def run() -> None:
        with os.fdopen(from_write, "wb", buffering=0) as output:
            serve(made, os.fdopen(to_read, "rb"), output)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def ask(message: dict[str, Any]) -> Any:
        os.write(to_write, json.dumps(message).encode() + b"\n")
        for line in answers:
            answer = json.loads(line)
            if answer["type"] == "error":
                raise RuntimeError(answer["message"])
            if answer["type"] != "progress":
                return answer
        raise RuntimeError("the engine has hung up")

    def make(name: str, steps: int) -> tuple[float, Any]:
        output = folder / name
        output.mkdir()
        asked = {"prompt": PROMPT, "width": size[0], "height": size[1], "frames": shape.frames,
                 "fps": shape.fps, "steps": steps, "seed": 1, "format": "mp4"}  # fmt: skip
        begun = time.perf_counter()
        answer = ask({"type": "generate", "id": name, "output_dir": str(output), "request": asked})
        return time.perf_counter() - begun, answer["metrics"]

    try:
        ask({"type": "load", "protocol": 1, "model": "bench", "settings": settings,
             "checkpoint": str(write_index(folder / "index", shape))})  # fmt: skip
        make("warm", 2)
        seconds, metrics = make("timed", steps)
        peak = metrics.get("peak_gpu_bytes", 0.0) / 1e9
        return Figures(metrics["denoise_ms"] / 1000 / steps, seconds, peak)
    finally:
        os.close(to_write)
        thread.join()
        made.free()


def through_server(
    name: str, size: tuple[int, int], steps: int, folder: Path, tiny: bool
) -> Figures:
    shape = (TINY if tiny else SHAPES)[name]
    here = str(Path(__file__).resolve().parents[1])
    program = f"import sys; sys.path.insert(0, {here!r}); from bench import gpu; gpu.main()"
    words = [sys.executable, "-c", program, "--engine", name]
    command = json.dumps([*words, "--tiny"] if tiny else words)
    checkpoint = json.dumps(str(write_index(folder / "index", shape)))
    model = f"""
command = {command}
checkpoint = {checkpoint}
grace_seconds = 60
limits = {{ multiple = 16, max_frames = 121 }}
defaults = {{ size = "{size[0]}x{size[1]}", frames = {shape.frames}, fps = {shape.fps}, steps = 2 }}
"""
    with server.Bench(folder / "server", model) as service:
        service.finished({"prompt": PROMPT, "seed": 1})
        begun = time.perf_counter()
        task = service.finished({"prompt": PROMPT, "seed": 1, "steps": steps})
        seconds = time.perf_counter() - begun
    metrics = task["attempts"][-1]["metrics"]
    peak = metrics.get("peak_gpu_bytes", 0.0) / 1e9
    return Figures(metrics["denoise_ms"] / 1000 / steps, seconds, peak)


class Run(NamedTuple):
    by: str
    cache: str
    attention: str
    measure: Callable[[Path], Figures]


def runs(arguments: argparse.Namespace, name: str, size: tuple[int, int]) -> Iterator[Run]:
    shape = (TINY if arguments.tiny else SHAPES)[name]
    steps = arguments.steps or shape.steps

    def by_diffusers(place: Path) -> Figures:
        return bare(shape, size, steps, place)

    def by_server(place: Path) -> Figures:
        return through_server(name, size, steps, place, arguments.tiny)

    def by_engine(settings: dict[str, Any]) -> Callable[[Path], Figures]:
        return lambda place: engine(shape, size, steps, place, settings)

    yield Run("diffusers", "", "", by_diffusers)
    yield Run("rayreel, engine", "", "", by_engine({}))
    if server.is_built() and not arguments.no_server:
        yield Run("rayreel, server", "", "", by_server)
    if arguments.quick:
        return
    for cache, how in CACHES.items():
        if cache == "magcache" and shape.boundary is not None:
            how = how | {"ratios_2": [1.0]}
        yield Run("rayreel, engine", cache, "", by_engine({"cache": how}))
    for backend in ATTENTION:
        yield Run("rayreel, engine", "", backend, by_engine({"attention": backend}))


def rows(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    yield "| model | size | run by | cache | attention | s/step | peak, GB | s/video | official |"
    yield "|---|---|---|---|---|---|---|---|---|"
    number = 0
    for name in arguments.models:
        shape = (TINY if arguments.tiny else SHAPES)[name]
        for size_name in arguments.sizes:
            size = shape.sizes[size_name]
            for run in runs(arguments, name, size):
                number += 1
                place = folder / str(number)
                place.mkdir()
                found = _figures(run, place)
                official = shape.official.get(size_name, "") if run.by == "diffusers" else ""
                cells = [shape.name, f"{size[0]}x{size[1]}", run.by, run.cache, run.attention]
                yield "| " + " | ".join([*cells, *found, official]) + " |"


def _figures(run: Run, place: Path) -> list[str]:
    """What is measured, or why it is not."""
    dispatch = importlib.import_module("diffusers.models.attention_dispatch")
    backends: Any = dispatch._AttentionBackendRegistry
    backend = backends._active_backend
    try:
        found = run.measure(place)
    except (RuntimeError, ValueError, ImportError) as error:
        why = (str(error).strip() or repr(error)).splitlines()[0]
        return [f"not run: {why[:90]}".replace("|", "/"), "", ""]
    finally:
        # One that a model is given is everybody's from then on.
        backends.set_active_backend(backend)
        gc.collect()
        if torch().cuda.is_available():
            torch().cuda.empty_cache()
    video = f"{found.video:.1f}" if found.video >= 10 else f"{found.video:.3f}"
    return [f"{found.step:.3f}", f"{found.peak:.1f}" if found.peak else "", video]


def heading(arguments: argparse.Namespace) -> str:
    versions = f"torch {torch().__version__}, diffusers {diffusers().__version__}"
    device = "the CPU, tiny shapes: a test of the bench, no figures"
    if torch().cuda.is_available() and not arguments.tiny:
        device = torch().cuda.get_device_name()
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    steps = f"{arguments.steps} steps" if arguments.steps else "the steps of the official table"
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"Measured on {when}, revision {revision}: {device}; {versions}; {steps}, random weights. "
        "Official: seconds and GB that Wan2.2's authors give for one GPU."
    )


def write(path: Path, text: str) -> None:
    """Between the marks of a page that has them; as a page of its own otherwise."""
    page = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in page or END not in page:
        sys.exit(f"{path} has no place for the figures: {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def read_arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], prog="scripts/bench-gpu"
    )
    parser.add_argument("--models", type=names, default=["5b", "a14b"], help="of 5b, a14b")
    parser.add_argument("--sizes", type=names, default=["480p", "720p"], help="of 480p, 720p")
    parser.add_argument("--steps", type=int, help="fewer than the official table's 50 and 40")
    parser.add_argument("--quick", action="store_true", help="without caches and backends")
    parser.add_argument("--no-server", action="store_true", help="not through the server")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table into a page")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for given, known in ((arguments.models, SHAPES), (arguments.sizes, ("480p", "720p"))):
        for name in given:
            if name not in known:
                parser.error(f"there is no `{name}`; there is {', '.join(known)}")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if arguments.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.engine:
        serve(RandomWan((TINY if arguments.tiny else SHAPES)[arguments.engine]))
        return
    if arguments.tiny:
        arguments.sizes, arguments.steps = ["480p"], arguments.steps or 6
    elif not torch().cuda.is_available():
        sys.exit("there is no GPU that torch can use; `--tiny` tests the bench on the CPU")
    lines = [heading(arguments), ""]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="rayreel-gpu-") as folder:
        for line in rows(arguments, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if arguments.write is not None:
        write(arguments.write, "\n".join(lines))


if __name__ == "__main__":
    main()
