"""The real server, for tests and benchmarks of the engines behind it.

The program is that which `RAYREEL` names, or `target/release/rayreel`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.worker import SOURCES, WAIT, until

RAYREEL = Path(
    os.environ.get("RAYREEL", Path(__file__).parents[2] / "target/release/rayreel")
).absolute()

ENDS = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}


class Server:
    """`rayreel serve` on a free port, with a configuration of its own."""

    def __init__(self, folder: Path, config: str):
        self.folder = folder
        (folder / "rayreel.toml").write_text(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{address}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYREEL")}
        # The engine gets what begins with PYTHON.
        environment["PYTHONPATH"] = str(SOURCES)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [RAYREEL, "--config", folder / "rayreel.toml", "serve", "--listen", address,
                 "--data", folder / "data"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.call("/readyz"))
        except OSError:
            return False

    def call(self, path: str, body: Any = None, method: str | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.read()

    def submit(self, model: str, **asked: Any) -> str:
        asked = {"model": model, "prompt": "a red fox", "seed": 7} | asked
        return json.loads(self.call("/v1/video/generations", asked))["id"]

    def task(self, id: str) -> Any:
        return json.loads(self.call(f"/v1/video/generations/{id}"))

    def end_of(self, id: str) -> Any:
        deadline = time.monotonic() + 5 * WAIT
        while (task := self.task(id))["status"] not in ENDS:
            assert time.monotonic() < deadline, (task, self.log.read_text())
            time.sleep(0.1)
        return task

    def make(self, model: str, **asked: Any) -> tuple[Any, bytes]:
        id = self.submit(model, **asked)
        task = self.end_of(id)
        assert task["status"] == "SUCCEEDED", (task, self.log.read_text())
        return task, self.call(f"/v1/video/generations/{id}/content")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT)
