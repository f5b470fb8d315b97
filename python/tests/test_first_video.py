"""The README's way from the test card to the first video of a model, command by command, with a
tiny checkpoint. The Python environment is really made, of what the program brings.

The program is that which `RAYREEL` names, or `target/release/rayreel`; without it, or without uv,
this is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

from tests.test_server import RAYREEL, probe

ROOT = Path(__file__).parents[2]
CHECKPOINT = "/models/Wan2.2-TI2V-5B-Diffusers"

pytestmark = [
    pytest.mark.skipif(not RAYREEL.exists(), reason=f"there is no {RAYREEL}"),
    pytest.mark.skipif(shutil.which("uv") is None, reason="there is no uv on PATH"),
]


def commands(readme: str) -> list[str]:
    """The block in which a model is added."""
    text = (ROOT / readme).read_text()
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (block,) = [block for block in blocks if "models add" in block]
    return block.splitlines()


class Machine:
    """A user who has the program and uv, and nothing else yet."""

    def __init__(self, folder: Path):
        self.folder = folder / "work"
        self.folder.mkdir()
        (folder / "bin").mkdir()
        (folder / "bin/rayreel").symlink_to(RAYREEL)
        # Of Python least of all: what is imported is what was installed.
        ours = ("RAYREEL", "XDG", "PYTHON", "VIRTUAL_ENV")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        # Without it uv would download everything again: its cache is the user's.
        cache = subprocess.check_output(["uv", "cache", "dir"], text=True).strip()
        self.environment = kept | {
            "HOME": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "UV_CACHE_DIR": cache,
        }

    def run(self, command: str) -> tuple[str, str]:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout, done.stderr


@pytest.fixture
def machine(tmp_path: Path):
    yield Machine(tmp_path)
    # pytest would keep gigabytes.
    shutil.rmtree(tmp_path / ".local", ignore_errors=True)


def test_both_readmes_have_the_same_commands():
    assert len(commands("README.md")) == 4
    assert commands("README.md") == commands("README.zh-CN.md")


def test_four_commands_lead_to_the_first_video(
    machine: Machine, tmp_path: Path, checkpoint: Callable[[str], Path]
):
    tiny = str(checkpoint("wan-ti2v"))
    card, add, check, generate = (
        command.replace(CHECKPOINT, tiny) for command in commands("README.md")
    )
    assert tiny in add

    said, _ = machine.run(card)
    assert "test pattern" in said
    said, noted = machine.run(add)
    assert "rayreel.toml has the model" in said
    assert "Installed" in noted, "uv's progress is shown"
    said, _ = machine.run(check)
    assert re.search(r"^wan2\.2-ti2v-5b .* ok, default$", said, re.MULTILINE), said
    said, noted = machine.run(generate)
    assert "wrote fox.mp4" in said
    assert "test pattern" not in said + noted
    video = (machine.folder / "fox.mp4").read_bytes()
    assert probe(video, tmp_path) == ("h264", 832, 480, 25)
