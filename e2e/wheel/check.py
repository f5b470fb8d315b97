"""The wheel, installed in an environment of its own: it brings the program and the package, they are
of one version, and an engine that imports the package makes a video under the program.

usage: check.py PYTHON    (of that environment)
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[2] / "python/README.md"


def main() -> None:
    python = Path(sys.argv[1]).absolute()
    program = python.with_name("rayreel")
    installed = "import importlib.metadata as m; print(m.version('rayreel'))"
    version = run(python, "-c", installed).strip()
    assert run(program, "--version").split()[:2] == ["rayreel", version], version

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make(program, home, "card.mp4")

        engine = re.search(r"`waves.py`:\n```python\n(.*?)```", README.read_text(), re.DOTALL)
        assert engine, "the example is gone from the readme"
        (home / "waves.py").write_text(engine[1])
        command = json.dumps([str(python), str(home / "waves.py")])
        (home / "rayreel.toml").write_text(f"[models.waves]\ncommand = {command}\n")
        make(program, home, "waves.mp4", "--model", "waves")
        (home / "checkpoint").mkdir()
        (home / "rayreel.toml").write_text(
            f'[models.wan]\nengine = "wan"\ncheckpoint = "{home}/checkpoint"\n'
        )
        words = [program, "models", "check"]
        check = subprocess.run(words, cwd=home, env=clean(home), capture_output=True, text=True)
        said = check.stdout + check.stderr
        # Of this environment, which lacks what the engines need.
        assert f"{python}: " in said, said
    print(f"the wheel of {version} brings the program and the package")


def make(program: Path, home: Path, name: str, *options: str) -> None:
    run(program, "generate", "a wave", "--size", "64x64", "--frames", "5", "-o", name, *options, home=home)
    film = (home / name).read_bytes()
    assert film[4:8] == b"ftyp", film[:16]


def run(*words: str | Path, home: Path | None = None) -> str:
    done = subprocess.run(words, cwd=home, env=clean(home), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean(home: Path | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAYREEL")}
    if home:
        environment |= {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    return environment


if __name__ == "__main__":
    main()
