"""Runs an engine of rayreel's own: `python -m rayreel ENGINE`, as the `command` of a model."""

from __future__ import annotations

import sys

from rayreel.serving import serve

ENGINES = ("stable-diffusion", "wan")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) == 2 else None
    if name == "wan":
        from rayreel.engines.wan import Wan

        serve(Wan())
    elif name == "stable-diffusion":
        from rayreel.engines.stable_diffusion import StableDiffusion

        serve(StableDiffusion())
    else:
        sys.exit(f"usage: python -m rayreel ENGINE\nengines: {', '.join(ENGINES)}")


if __name__ == "__main__":
    main()
