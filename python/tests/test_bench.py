"""The benches run: on the CPU, with tiny shapes. What they measure there means nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the engines on diffusers are not installed")

from bench import gpu, server

ROOT = Path(__file__).parents[2]


def test_the_bench_for_gpus_measures_everything_with_tiny_shapes(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n")
    words = [ROOT / "scripts/bench-gpu", "--tiny", "--steps", "4", "--write", page]
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run(words, check=True, env=environment, timeout=600)
    text = page.read_text()
    assert text.startswith(f"before\n{gpu.BEGIN}\nMeasured on ")
    assert text.endswith(f"{gpu.END}\nafter\n")
    assert "no figures" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()
            if line.startswith("| tiny")]  # fmt: skip
    runners = ["diffusers", "rayreel, engine", "rayreel, server"]
    for model in ("tiny TI2V-5B", "tiny T2V-A14B"):
        mine = [row for row in rows if row[0] == model]
        plain = [row[2] for row in mine if not row[3] and not row[4]]
        assert plain == (runners if server.is_built() else runners[:2])
        assert [row[3] for row in mine if row[3]] == list(gpu.CACHES)
        assert [row[4] for row in mine if row[4]] == list(gpu.ATTENTION)
        for row in mine:
            if not row[4] or row[4] == "native":
                assert float(row[5]) > 0, row
                assert float(row[7]) > 0, row


@pytest.mark.skipif(not server.is_built(), reason="there is no rayreel")
def test_the_bench_of_what_rayreel_adds_compares_both(tmp_path: Path):
    words = [sys.executable, "-m", "bench.overhead", "--rounds", "1", "--steps", "4",
             "--step-ms", "5"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'python/src'}", "TMPDIR": str(tmp_path)}
    text = subprocess.check_output(
        words, cwd=ROOT / "python", env=environment, text=True, timeout=600
    )
    assert "4 steps of " in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert {"seconds", "seconds of the processor", "of it denoise, ms"} <= set(rows)
    assert float(rows["seconds"].split("|")[2]) > 0
    assert float(rows["seconds"].split("|")[3]) > 0
