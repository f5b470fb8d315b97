"""A denoiser over the ranks of a gang: diffusers' context parallelism. Each rank has the whole
model and works on its share of the tokens; for attention they exchange heads (Ulysses), or pass
keys and values around (ring)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayreel.engine import InvalidRequest, LoadFailed
from rayreel.gang import Alone, Gang, Launcher, Lead
from rayreel.wire import Load


def torch() -> Any:
    return importlib.import_module("torch")


def form(
    engine: str,
    load: Load,
    degrees: tuple[int, int],
    device: str,
    launcher: Launcher,
    abandon: Callable[[Exception], None],
) -> Gang:
    """The gang that these settings ask for, its ranks started. `degrees` are `ulysses` and `ring`,
    `device` is the setting of this name."""
    ulysses, ring = degrees
    for name, degree in (("ulysses", ulysses), ("ring", ring)):
        if degree < 1:
            raise LoadFailed(f"setting `{name}` must be at least 1, not {degree}")
    world = ulysses * ring
    if world == 1:
        return Alone()
    if ":" in device:
        kind = device.partition(":")[0]
        raise LoadFailed(
            f"setting `device` = {json.dumps(device)} names one device, but {world} are needed: "
            f"say {json.dumps(kind)}, and choose among them with CUDA_VISIBLE_DEVICES"
        )
    if load.checkpoint is not None:
        _check_heads(load.checkpoint, ulysses)
    kind = device
    if device == "auto":
        # A build for an accelerator names it, even if there is none.
        there = torch().accelerator.is_available()
        kind = torch().accelerator.current_accelerator().type if there else "cpu"
    if kind == "cpu" and ring > 1:
        raise LoadFailed("setting `ring` needs GPUs; on the CPU there is `ulysses`")
    room = launcher.room(kind)
    if room is not None and room < world:
        raise LoadFailed(
            f"`ulysses` times `ring` is {world}, but there are {room} devices of type {kind}"
        )
    return Lead(engine, load, world, kind, launcher, abandon)


def _check_heads(checkpoint: Path, ulysses: int) -> None:
    """Before anything is loaded, because that takes minutes."""
    for name in ("transformer", "transformer_2"):
        try:
            config = json.loads((checkpoint / name / "config.json").read_text())
            heads = config["num_attention_heads"]
        except (OSError, ValueError, KeyError):
            continue  # Of another kind, or broken: loading it says so.
        if heads % ulysses:
            fitting = [str(n) for n in range(1, heads + 1) if heads % n == 0]
            raise LoadFailed(
                f"setting `ulysses` must divide the model's {heads} attention heads, which "
                f"{ulysses} does not; {', '.join(fitting)} do"
            )


class Spread:
    """How a pipeline's denoisers are spread over the ranks."""

    def __init__(self, gang: Gang, degrees: tuple[int, int]):
        self._gang = gang
        self._ulysses, self._ring = degrees

    def apply(self, denoisers: Iterator[Any]) -> None:
        """All ranks must do so together."""
        if self._gang.world == 1:
            return
        # However much later another one has read the weights.
        self._gang.meet()
        device = torch().device(self._gang.device)
        dist = importlib.import_module("torch.distributed.device_mesh")
        mesh = dist.init_device_mesh(
            device.type, (self._ring, self._ulysses), mesh_dim_names=("ring", "ulysses")
        )
        # One for both experts, so that they share the connections.
        config = importlib.import_module("diffusers").ContextParallelConfig(
            ulysses_degree=self._ulysses, ring_degree=self._ring, mesh=mesh
        )
        for model in denoisers:
            try:
                with _resolved_for(model, device, self._gang):
                    model.enable_parallelism(config=config)
            except (ValueError, NotImplementedError) as error:
                raise LoadFailed(f"`ulysses` and `ring`: {error}") from error

    def check(self, tokens: int) -> None:
        """Refuses what can't be divided evenly, given the tokens of a video in the denoiser."""
        # diffusers' ways to divide it unevenly (`ulysses_anything`) don't run over gloo.
        if tokens % self._gang.world:
            raise InvalidRequest(
                f"this size and number of frames make {tokens} tokens, which this model's "
                f"{self._gang.world} GPUs can't divide evenly; ask for another size"
            )

    def hooks(self, denoisers: Iterator[Any]) -> Iterator[Any]:
        """While a request is done: has every rank begin each forward pass with what rank 0 has, so
        that what it has read and drawn need not come out the same elsewhere, to the last bit."""
        if self._gang.world == 1:
            return
        for model in denoisers:
            yield model.register_forward_pre_hook(self._before, with_kwargs=True)

    @staticmethod
    def _before(_model: Any, _args: Any, inputs: dict[str, Any]) -> None:
        for name in ("hidden_states", "encoder_hidden_states"):
            if inputs.get(name) is not None:
                torch().distributed.broadcast(inputs[name], src=0)


@contextmanager
def _resolved_for(model: Any, device: Any, gang: Gang) -> Generator[None]:
    """On the CPU, diffusers 0.42.1 can't find out by itself where it is: `_resolve_parallel_config`
    takes the accelerator for the device, or divides by their number, which is 0."""
    if device.type != "cpu":
        yield
        return
    parallel = importlib.import_module("diffusers").ParallelConfig

    def resolve(config: Any) -> Any:
        resolved = parallel(context_parallel_config=config)
        resolved.setup(gang.rank, gang.world, device, mesh=config.mesh)
        model._parallel_config = resolved
        return resolved

    model._resolve_parallel_config = resolve
    try:
        yield
    finally:
        del model._resolve_parallel_config
