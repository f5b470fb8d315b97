"""Runs an engine of rayreel's own: `python -m rayreel ENGINE`, as the `command` of a model."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rayreel.serving import serve

if TYPE_CHECKING:
    from rayreel.engines.diffusion import Diffusion

ENGINES = ("stable-diffusion", "wan")


def engine_named(name: str) -> Diffusion:
    if name == "wan":
        from rayreel.engines.wan import Wan

        return Wan()
    from rayreel.engines.stable_diffusion import StableDiffusion

    return StableDiffusion()


def main() -> None:
    words = sys.argv[1:]
    if len(words) == 1 and words[0] in ENGINES:
        serve(engine_named(words[0]))
    elif len(words) == 3 and words[0] == "rank":
        # A process of a gang, started by the engine.
        from rayreel.gang.launch import Seat, die_with
        from rayreel.gang.peer import join

        die_with(int(words[2]))
        join(Seat(**json.loads(words[1])), engine_named)
    else:
        sys.exit(f"usage: python -m rayreel ENGINE\nengines: {', '.join(ENGINES)}")


if __name__ == "__main__":
    main()
