"""The real server, with one model, for the benches: asked and awaited, and its processor time
read."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.service import ENDS, RAYREEL, Server

PATIENCE = 6000.0
"""Seconds for a video."""


def is_built() -> bool:
    return RAYREEL.exists()


class Bench(Server):
    """A server whose one model is `bench`; to be used with `with`."""

    def __init__(self, folder: Path, model: str):
        """`model`: the lines of its table in the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, f"[retry]\nmax_failures = 1\n[models.bench]\n{model}\n")

    def __enter__(self):
        return self

    def __exit__(self, *_: Any):
        self.process.terminate()
        self.process.wait()

    def finished(self, request: dict[str, Any]) -> Any:
        """From the POST until the stream of events says that it has succeeded; the task."""
        body = {"model": "bench"} | request
        id = json.loads(self.call("/v1/video/generations", body))["id"]
        address = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        connection.request("GET", f"/v1/video/generations/{id}/events")
        for event in _events(connection.getresponse()):
            if event.get("status") in ENDS:
                break
        connection.close()
        task = self.task(id)
        if task["status"] != "SUCCEEDED":
            raise RuntimeError(task["error"]["message"])
        return task

    def cpu(self) -> float:
        """Seconds that the server and its children have worked, user and system."""
        return sum(_cpu(pid) for pid in [self.process.pid, *_descendants(self.process.pid)])


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
