"""The engine of the README is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("av", reason="rayreel[media] is not installed")

from tests.worker import Child

README = Path(__file__).parents[1] / "README.md"


def test_the_engine_in_thirty_lines_makes_a_video(tmp_path: Path):
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    code = [line for line in found[1].splitlines() if line.strip()]
    assert len(code) <= 30
    script = tmp_path / "waves.py"
    script.write_text(found[1])
    engine = Child(str(script))
    assert engine.load(speed=2)["engine"] == "waves"
    done, progress = engine.generate(tmp_path / "1", frames=9)
    assert [file["role"] for file in done["files"]] == ["video", "thumbnail"]
    assert {message["stage"] for message in progress} >= {"draw"}
    engine.generate(tmp_path / "2", frames=9)
    engine.generate(tmp_path / "3", frames=9, seed=8)
    first, again, other = ((tmp_path / n / "video.mp4").read_bytes() for n in "123")
    assert first == again != other
    engine.say({"type": "exit"})
    assert engine.status() == 0
