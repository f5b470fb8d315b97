"""What rayreel adds to a bare diffusers run of the same request.

    cd python && PYTHONPATH=src python -m bench.overhead [--rounds N] [--steps N] [--step-ms N]

In this process, diffusers' Wan pipeline and an MP4; beside it, the real server with a warm worker
and the engine `wan`, from the POST until the task has succeeded. The same checkpoint, the same
call, the same encoder; one after the other, in turn, and each pair compared. The transformer has
as many layers as take a step of about 100 ms on one core.

Other work on the machine shows in the time that passes more than in the time of the processor; both
are told. The program is that which `RAYREEL` names, or `target/release/rayreel`.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tiny_checkpoints
from bench import server
from rayreel.engines.diffusion import diffusers, to_bytes, torch
from rayreel.engines.wan import NEGATIVE_PROMPT
from rayreel.media import write_video
from rayreel.wire import Request

WIDTH, HEIGHT, FRAMES, FPS = 96, 96, 17, 16
PROMPT = "a red fox runs through deep snow"


class Run(NamedTuple):
    seconds: float
    cpu: float
    """Seconds of the processor, user and system, of all processes that took part."""
    stages: dict[str, float]
    """Milliseconds."""


def transformer(layers: int) -> Any:
    return (
        diffusers()
        .WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=8,
            attention_head_dim=64,
            in_channels=16,
            out_channels=16,
            text_dim=tiny_checkpoints.TEXT,
            freq_dim=256,
            ffn_dim=2048,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        )
        .eval()
    )


def layers_for(milliseconds: float) -> int:
    """How many take about so long on one core, as it is now."""
    some = 3
    model = transformer(some)
    latents = torch().randn(1, 16, (FRAMES - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    text = torch().randn(1, 512, tiny_checkpoints.TEXT)
    times: list[float] = []
    with torch().no_grad():
        for _ in range(12):
            # Of the processor: others may be using it as well.
            start = time.thread_time()
            model(latents, torch().tensor([500.0]), text)
            times.append(time.thread_time() - start)
    return max(1, round(milliseconds / 1000 / (statistics.median(times) / some)))


def write_checkpoint(folder: Path, layers: int) -> None:
    with torch().random.fork_rng():
        torch().manual_seed(0)
        pipe = tiny_checkpoints.KINDS["wan-t2v"]()
        pipe.register_modules(transformer=transformer(layers), transformer_2=None)
        pipe.register_to_config(boundary_ratio=None)
        pipe.save_pretrained(folder, safe_serialization=True)


class Bare:
    """Diffusers as its documentation has it, and the MP4."""

    def __init__(self, checkpoint: Path, flow_shift: float):
        self._pipe = diffusers().WanPipeline.from_pretrained(checkpoint, dtype=torch().float32)
        scheduler = self._pipe.scheduler
        self._pipe.scheduler = scheduler.from_config(scheduler.config, flow_shift=flow_shift)
        self._pipe.set_progress_bar_config(disable=True)

    def run(self, folder: Path, steps: int, seed: int) -> Run:
        folder.mkdir()
        begun, worked = time.perf_counter(), _own_cpu()
        marks: dict[str, float] = {"begin": begun}

        def ended(_pipe: Any, index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
            marks["denoised" if index + 1 == steps else "denoising"] = time.perf_counter()
            return values

        film = self._pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE_PROMPT,
            width=WIDTH,
            height=HEIGHT,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=torch().Generator("cpu").manual_seed(seed),
            output_type="pt",
            callback_on_step_end=ended,
        ).frames[0]
        marks["decoded"] = time.perf_counter()
        request = Request("x", folder, PROMPT, WIDTH, HEIGHT, FRAMES, FPS, steps, seed, "mp4")
        write_video(request, map(to_bytes, film))
        seconds = time.perf_counter() - begun
        stages = {
            "denoise": (marks["denoised"] - begun) * 1000,
            "decode": (marks["decoded"] - marks["denoised"]) * 1000,
            "encode": (begun + seconds - marks["decoded"]) * 1000,
        }
        return Run(seconds, _own_cpu() - worked, stages)


def through(service: server.Bench, steps: int, seed: int) -> Run:
    begun, worked = time.perf_counter(), service.cpu()
    task = service.finished(
        {"prompt": PROMPT, "seed": seed, "steps": steps, "guidance": 1.0,
         "size": f"{WIDTH}x{HEIGHT}", "frames": FRAMES, "fps": FPS}
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    told: dict[str, float] = task["attempts"][-1].get("metrics") or {}
    stages = {name.removesuffix("_ms"): value for name, value in told.items()}
    stages["denoise"] = stages.pop("encode_prompt", 0.0) + stages.get("denoise", 0.0)
    return Run(seconds, service.cpu() - worked, stages)


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(
    folder: Path, rounds: int, steps: int, step_ms: float
) -> tuple[int, list[tuple[Run, Run]]]:
    """The layers, and pairs of a bare run and one through rayreel."""
    layers = layers_for(step_ms)
    write_checkpoint(folder / "checkpoint", layers)
    bare = Bare(folder / "checkpoint", flow_shift=12)
    model = f"""
command = ["{sys.executable}", "-m", "rayreel", "wan"]
checkpoint = "{folder / "checkpoint"}"
settings = {{ device = "cpu" }}
limits = {{ multiple = 16, max_frames = 81 }}
defaults = {{ size = "{WIDTH}x{HEIGHT}", frames = {FRAMES}, fps = {FPS}, steps = {steps} }}
"""
    pairs: list[tuple[Run, Run]] = []
    with server.Bench(folder / "server", model) as service:
        # Both are warm then: the model is loaded, every kernel was run.
        bare.run(folder / "warm", 2, 0)
        through(service, 2, 0)
        for number in range(1, rounds + 1):
            runs: dict[str, Run] = {}
            turns: list[tuple[str, Callable[[], Run]]] = [
                ("bare", lambda n=number: bare.run(folder / f"bare-{n}", steps, n)),
                ("rayreel", lambda n=number: through(service, steps, n)),
            ]
            # Whoever comes second finds another machine; in turn.
            for name, turn in turns if number % 2 else reversed(turns):
                runs[name] = turn()
            pairs.append((runs["bare"], runs["rayreel"]))
            print(f"round {number}: {runs['bare'].seconds:.3f} s bare, "
                  f"{runs['rayreel'].seconds:.3f} s rayreel", file=sys.stderr)  # fmt: skip
    return layers, pairs


def report(pairs: list[tuple[Run, Run]], steps: int, layers: int) -> str:
    def median(of: Callable[[Run, Run], float]) -> float:
        return statistics.median(of(*pair) for pair in pairs)

    rows = [
        ("seconds", *(median(lambda b, r, i=i: (b, r)[i].seconds) for i in (0, 1)),
         median(lambda b, r: (r.seconds / b.seconds - 1) * 100)),
        ("seconds of the processor", *(median(lambda b, r, i=i: (b, r)[i].cpu) for i in (0, 1)),
         median(lambda b, r: (r.cpu / b.cpu - 1) * 100)),
    ]  # fmt: skip
    step = median(lambda b, _: b.stages["denoise"] / steps)
    lines = [
        f"{steps} steps of {step:.0f} ms ({layers} layers), {WIDTH}x{HEIGHT}, {FRAMES} frames; "
        f"medians of {len(pairs)} pairs; load of the machine {os.getloadavg()[0]:.1f}.",
        "",
        "| | bare diffusers | rayreel | more, % (median of pairs) |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {b:.3f} | {r:.3f} | {more:+.2f} |" for name, b, r, more in rows]
    for stage in ("denoise", "decode", "encode"):
        b = median(lambda b, _, s=stage: b.stages.get(s, 0.0))
        r = median(lambda _, r, s=stage: r.stages.get(s, 0.0))
        more = median(lambda b, r, s=stage: r.stages.get(s, 0.0) - b.stages.get(s, 0.0))
        lines.append(f"| of it {stage}, ms | {b:.1f} | {r:.1f} | {more:+.1f} ms |")

    def around(run: Run) -> float:
        return run.seconds * 1000 - sum(
            run.stages.get(s, 0) for s in ("denoise", "decode", "encode")
        )

    outside = median(lambda _, r: around(r))
    lines.append(f"| outside of the engine's stages, ms | | {outside:.1f} | {outside:+.1f} ms |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step-ms", type=float, default=100)
    arguments = parser.parse_args()
    if not server.is_built():
        sys.exit("there is no target/release/rayreel: build it, or name one in RAYREEL")
    # For the libraries, before they are loaded, and for the engine's, too.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="rayreel-overhead-") as folder:
        layers, pairs = measure(Path(folder), arguments.rounds, arguments.steps, arguments.step_ms)
    print(report(pairs, arguments.steps, layers))


if __name__ == "__main__":
    main()
