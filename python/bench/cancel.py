"""How long after a cancel the engine is idle: real server, worker and engine `wan`, on the CPU.

A task runs, a second one waits behind it; the first is cancelled at a random moment, and what is
measured is the time until the second one runs. Run it from `python/`, in an environment with the
package's extra `diffusers`:

    PYTHONPATH=src python -m bench.cancel [CANCELS]
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import tiny_checkpoints
from tests.service import Server
from tests.worker import until

STEPS = 40
FRAMES = 81


def main() -> None:
    cancels = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "wan-t2v"
        tiny_checkpoints.write("wan-t2v", checkpoint)
        server = Server(
            Path(folder),
            f"""
[models.t2v]
command = [{json.dumps(sys.executable)}, "-m", "rayreel", "wan"]
checkpoint = {json.dumps(str(checkpoint))}
limits = {{ multiple = 16, max_frames = {FRAMES} }}
defaults = {{ size = "64x64", frames = 5, fps = 8, steps = 2 }}
""",
        )
        try:
            measure(server, cancels)
        finally:
            server.stop()


def measure(server: Server, cancels: int) -> None:
    chance = random.Random(1)
    long = {"size": "128x128", "frames": FRAMES, "steps": STEPS}
    task, _ = server.make("t2v", **long)
    step = task["attempts"][-1]["metrics"]["denoise_ms"] / STEPS
    times: list[float] = []
    for _ in range(cancels):
        first = server.submit("t2v", **long)

        def runs(id: str) -> bool:
            return server.task(id)["status"] != "QUEUED"

        until(lambda first=first: runs(first))
        time.sleep(chance.uniform(0.05, STEPS * step * 0.8 / 1000))
        second = server.submit("t2v")
        server.call(f"/v1/video/generations/{first}/cancel", {})
        cancelled = time.perf_counter()
        assert server.task(first)["status"] == "CANCELLED"
        until(lambda second=second: runs(second))
        times.append((time.perf_counter() - cancelled) * 1000)
        server.end_of(second)
    times.sort()
    print(f"one step: {step:.0f} ms; {cancels} cancels at random moments of {STEPS} steps")
    print(
        f"cancel to idle: median {statistics.median(times):.0f} ms,"
        f" 90 % within {times[int(0.9 * len(times))]:.0f} ms, at most {times[-1]:.0f} ms;"
        f" allowed: {step + 200:.0f} ms"
    )


if __name__ == "__main__":
    main()
