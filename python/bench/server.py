"""The real server, with one model, for the benches: started, asked, and its processor time read."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = f"{ROOT / 'src'}{os.pathsep}{ROOT}"

PATIENCE = 600.0
"""Seconds until the server must answer, or have loaded its model."""

ENDS = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}


def binary() -> Path | None:
    """What `RAYREEL` names, or the checkout's own; None if it is not built."""
    default = Path(__file__).parents[2] / "target/release/rayreel"
    path = Path(os.environ.get("RAYREEL", default)).absolute()
    return path if path.exists() else None


class Server:
    """`rayreel serve` with one model, `bench`, on a free port; to be used with `with`."""

    def __init__(self, program: Path, folder: Path, model: str):
        """`model`: the lines of its table in the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "rayreel.toml"
        config.write_text(f"[retry]\nmax_failures = 1\n[models.bench]\n{model}\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._log = folder / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYREEL")}
        environment["PYTHONPATH"] = SOURCES
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "--config", config, "serve", "--listen", f"127.0.0.1:{self._port}",
                 "--data", folder / "data"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._call("GET", "/readyz")[0] == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start:\n{self._log.read_text()}")
            time.sleep(0.05)

    def __exit__(self, *_: Any):
        self.process.terminate()
        self.process.wait()

    def make(self, request: dict[str, Any]) -> Any:
        """From the POST until the stream of events says that it has succeeded; the task."""
        status, answer = self._call("POST", "/v1/video/generations", {"model": "bench"} | request)
        task = json.loads(answer)
        if status >= 400:
            raise RuntimeError(f"refused: {answer.decode()}")
        path = f"/v1/video/generations/{task['id']}"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE * 10)
        connection.request("GET", f"{path}/events")
        for event in _events(connection.getresponse()):
            if event.get("status") in ENDS:
                break
        connection.close()
        task = json.loads(self._call("GET", path)[1])
        if task["status"] != "SUCCEEDED":
            raise RuntimeError(f"{task.get('error')}\n{self._log.read_text()[-4000:]}")
        return task

    def cpu(self) -> float:
        """Seconds that the server and its children have worked, user and system."""
        return sum(_cpu(pid) for pid in [self.process.pid, *_descendants(self.process.pid)])

    def _call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        result = answer.status, answer.read()
        connection.close()
        return result


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found += [child, *_descendants(child)]
    return found
