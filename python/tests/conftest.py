from __future__ import annotations

import os
from pathlib import Path

import pytest

import tiny_checkpoints

# Tiny models only lose by more threads, most of all beside other work.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """Writes the tiny checkpoint of a kind, once."""
    pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")
    written: dict[str, Path] = {}

    def write(kind: str) -> Path:
        if kind not in written:
            written[kind] = tmp_path_factory.mktemp("checkpoints") / kind
            tiny_checkpoints.write(kind, written[kind])
        return written[kind]

    return write
