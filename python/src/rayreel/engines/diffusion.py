"""What the engines on diffusers have in common: a pipeline that is loaded from a directory, placed
on a device, watched while it works, and dropped when memory runs out."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayreel.engine import Cancelled, Engine, Failed, InvalidRequest, LoadFailed, Progress
from rayreel.engines import parallel, quantisation
from rayreel.engines.loading import watched
from rayreel.engines.lora import Loras
from rayreel.engines.quantisation import Quantisation
from rayreel.gang import Alone, Gang, Launcher, Local
from rayreel.serving import is_out_of_memory
from rayreel.wire import Load, Request

Offload = Literal["none", "model", "group", "sequential"]


@dataclass(frozen=True)
class Placement:
    """Settings of every diffusers engine."""

    device: str = "auto"
    """`cuda`, `cuda:1`, `mps`, `cpu`; auto: the first of them that is there."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of the weights; auto: bfloat16, and float32 on the CPU."""
    offload: bool | Offload = "none"
    """What waits in the host's memory: nothing; `model`, whole models, but for the one at work
    (true); `group`, a few layers' worth at a time, copied ahead; `sequential`, every layer: the
    least memory, and by far the slowest."""
    vae_tiling: bool = False
    """Decode and encode in tiles, with less memory."""
    attention: str | None = None
    """Attention backend, by diffusers' name: `flash`, `sage`, `native` …"""
    ulysses: int = 1
    """GPUs that share the work by attention heads, which it must divide."""
    ring: int = 1
    """GPUs that share the work by passing keys and values around; with `ulysses`, their product."""
    quantisation: Quantisation | None = None
    """Weights of fewer bits."""


def torch() -> Any:
    # Untyped as far as we are concerned: their types do not survive a strict check.
    return importlib.import_module("torch")


def diffusers() -> Any:
    return importlib.import_module("diffusers")


@contextmanager
def _without_collection() -> Generator[None]:
    """For imports: they make a million objects that stay for good, and looking among them for
    garbage again and again takes an eighth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Diffusion(Engine):
    """A diffusers pipeline as an engine."""

    kinds: tuple[str, ...] = ()
    """Pipeline classes, as `model_index.json` names them, that this engine knows; none: any."""

    remedy = "settings that help: `offload`, `vae_tiling`, `quantisation`"

    pipe: Any = None
    """None before the load, and after memory ran out."""
    checkpoint: Path
    placement: Placement
    gang: Gang = Alone()
    """The processes that share the work; on ranks other than 0, set before the load."""
    launcher: Launcher = Local()
    loras: Loras

    @abstractmethod
    def read_settings(self, load: Load) -> Placement: ...

    @abstractmethod
    def open(self, dtype: Any) -> Any:
        """The pipeline from `self.checkpoint`, not placed yet."""

    def load(self, load: Load) -> None:
        def say(seconds: float) -> None:
            who = "" if self.gang.world == 1 else f" rank {self.gang.rank}"
            print(f"rayreel:{who} still loading, for {seconds:.0f} s", file=sys.stderr, flush=True)

        with watched(say):
            self._load(load)

    def _load(self, load: Load) -> None:
        self.placement = self.read_settings(load)
        if load.checkpoint is None:
            raise LoadFailed("this engine needs a `checkpoint`: a directory in diffusers' format")
        self.checkpoint = load.checkpoint
        self.loras = Loras(load.loras)
        self.index = read_index(load.checkpoint)
        kind = self.index.get("_class_name")
        if self.kinds and kind not in self.kinds:
            raise LoadFailed(
                f"{load.checkpoint} holds a {kind}; `{self.name}` runs {' and '.join(self.kinds)}"
            )
        place = self.placement
        degrees = place.ulysses, place.ring
        if self.gang.world == 1:
            self.gang = parallel.form(
                self.name, load, degrees, place.device, self.launcher, self.abandon
            )
        self.spread = parallel.Spread(self.gang, degrees)
        with self.gang.loading():
            with _without_collection():
                getattr(diffusers(), str(kind), None)
            self.version = f"diffusers {diffusers().__version__}, torch {torch().__version__}"
            self._open()

    def ready(self, progress: Progress) -> None:
        """Loads again what was dropped. To be called first by `generate`."""
        if self.pipe is None:
            progress("load", 0, 1)

            def say(_seconds: float) -> None:
                # A cancel waits until it is loaded.
                with suppress(Cancelled):
                    progress("load", 0, 1)

            with watched(say):
                self._open()

    def free(self) -> None:
        # The ranks of a gang would have to load it again together. It ends when it runs out of
        # memory in what they share.
        if self.gang.world == 1:
            self.pipe = None
            self.loras.forget()
        gc.collect()
        if torch().cuda.is_available():
            torch().cuda.empty_cache()

    def quantised(self, dtype: Any) -> dict[str, Any]:
        """What `from_pretrained` is told of quantisation, for `open`."""
        how, device = self.placement.quantisation, self._device()
        return quantisation.arguments(how, self.checkpoint, self.index, dtype, device)

    def _open(self) -> None:
        device, dtype = self._device(), self._dtype()
        try:
            pipe = self.open(dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            raise LoadFailed(f"{self.checkpoint} can't be loaded: {error}") from error
        pipe.set_progress_bar_config(disable=True)
        if self.placement.vae_tiling:
            pipe.vae.enable_tiling()
        if self.placement.attention is not None:
            self._set_attention(pipe, self.placement.attention, device, dtype)
        self._place(pipe, device)
        self.spread.apply(denoisers(pipe))
        self.pipe = pipe

    def _device(self) -> Any:
        name = self.gang.device or self.placement.device
        if name == "auto":
            found = (
                torch().accelerator.current_accelerator()
                if (torch().accelerator.is_available())
                else None
            )
            return found or torch().device("cpu")
        try:
            device = torch().device(name)
            # And back again: there are devices that compute nothing.
            torch().zeros(1, device=device).item()
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            raise LoadFailed(f"setting `device`: `{name}` can't be used: {first}") from error
        return device

    def _dtype(self) -> Any:
        name = self.placement.dtype
        if name == "auto":
            name = "float32" if self._device().type == "cpu" else "bfloat16"
        return getattr(torch(), name)

    def _place(self, pipe: Any, device: Any) -> None:
        offload = self.placement.offload
        if offload in (False, "none"):
            pipe.to(device)
        elif device.type == "cpu":
            raise LoadFailed("setting `offload` needs a GPU whose memory it spares; leave it out")
        elif offload in (True, "model"):
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.enable_group_offload(
                onload_device=device,
                offload_device=torch().device("cpu"),
                offload_type="leaf_level",
                use_stream=device.type == "cuda",
            )

    @staticmethod
    def _set_attention(pipe: Any, name: str, device: Any, dtype: Any) -> None:
        dispatch = importlib.import_module("diffusers.models.attention_dispatch")
        try:
            backend = dispatch.AttentionBackendName(name.lower())
        except ValueError:
            # Those with an underscore are diffusers' own affair; they are taken all the same.
            known = [each.value for each in dispatch.AttentionBackendName]
            there = ", ".join(each for each in known if not each.startswith("_"))
            raise LoadFailed(
                f"setting `attention`: there is no {json.dumps(name)}; there is {there}"
            ) from None
        try:
            # diffusers makes it the default of the whole process; what comes after may differ.
            with dispatch.attention_backend(backend):
                for model in denoisers(pipe):
                    model.set_attention_backend(backend.value)
                # What is installed need not run here, and would say so in the first step.
                size = getattr(next(denoisers(pipe)).config, "attention_head_dim", None)
                size = size if isinstance(size, int) else 64
                tokens = torch().zeros(1, 16, 2, size, device=device, dtype=dtype)
                dispatch.dispatch_attention_fn(tokens, tokens, tokens, backend=backend)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise LoadFailed(
                f"setting `attention`: {json.dumps(name)} can't be used on {device} "
                f"with {str(dtype).removeprefix('torch.')}: {error}"
            ) from error
        if not any(getattr(part, "_attention_backend", None) for part in processors(pipe)):
            raise LoadFailed("setting `attention`: this model has no choice of it; leave it out")

    @contextmanager
    def at_work(self, request: Request, progress: Progress, decode_calls: int) -> Generator[None]:
        """While the pipeline works: every model asks first whether it may, so that a cancel waits
        for less than a step, and the VAE, which knows no callback, tells how far it is. What is
        wrong with the request must have been said before."""
        pipe = self.pipe
        hooks: list[Any] = []

        def before(model: Any, hook: Callable[..., None]) -> None:
            if model is not None:
                hooks.append(model.register_forward_pre_hook(hook))

        def ask(*_: Any) -> None:
            progress.check()

        for model in (*denoisers(pipe), *text_encoders(pipe)):
            before(model, ask)
        before(getattr(pipe.vae, "encoder", None), ask)
        hooks += self.spread.hooks(denoisers(pipe))
        counted = iter(range(1 << 62))

        def decode(*_: Any) -> None:
            progress("decode", min(next(counted), decode_calls), decode_calls)

        before(getattr(pipe.vae, "decoder", None), decode)
        measured = torch().cuda.is_available()
        if measured:
            torch().cuda.reset_peak_memory_stats()
        try:
            # Without it, a prompt that is kept would keep the way in which it was computed.
            with torch().no_grad(), self.gang.together(request, progress):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            # An interrupted pipeline leaves its models where they were, and half a film in the VAE.
            if hasattr(pipe.vae, "clear_cache"):
                pipe.vae.clear_cache()
            pipe.maybe_free_model_hooks()
            if measured:
                peak = torch().cuda.max_memory_allocated()
                progress.metrics["peak_gpu_bytes"] = float(peak)

    def on_step(self, progress: Progress) -> Callable[..., dict[str, Any]]:
        """`callback_on_step_end` of a pipeline."""

        def ended(pipe: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            progress("denoise", index + 1, pipe.num_timesteps)
            if index + 1 == pipe.num_timesteps:
                self.gang.denoised(progress)
            return values

        return ended

    @staticmethod
    def noise(request: Request) -> Any:
        """On the CPU, so that a seed means the same on every device."""
        return torch().Generator("cpu").manual_seed(request.seed)


def read_index(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "model_index.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        if not checkpoint.is_dir():
            raise LoadFailed(f"there is no directory {checkpoint}") from None
        raise LoadFailed(
            f"{checkpoint} has no model_index.json; is it in diffusers' format?"
        ) from None
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path} can't be read: {error}") from None


def denoisers(pipe: Any) -> Iterator[Any]:
    for name in ("transformer", "transformer_2", "unet"):
        if (model := getattr(pipe, name, None)) is not None:
            yield model


def processors(pipe: Any) -> Iterator[Any]:
    """What computes the attention in the denoisers."""
    for model in denoisers(pipe):
        for layer in model.modules():
            yield getattr(layer, "processor", None)


def text_encoders(pipe: Any) -> Iterator[Any]:
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if (model := getattr(pipe, name, None)) is not None:
            yield model


def check_guidance(request: Request) -> None:
    for name, scale in (("guidance", request.guidance), ("guidance_2", request.guidance_2)):
        if scale is not None and scale < 0:
            raise InvalidRequest(f"{name} is at least 0, not {scale:g}")


def to_bytes(frame: Any) -> Any:
    """A frame of a pipeline's output of type `pt` as a picture. Not a number means that the model
    has diverged, or was given a dtype that it can't bear: with the same seed it would again."""
    if not bool(torch().isfinite(frame).all()):
        raise Failed(
            "the model gave pixels that are no numbers; try another `dtype`, or settings and "
            "requests whose guidance and `flow_shift` are nearer to the model's own",
            retryable=False,
        )
    frame = (frame.clamp(0, 1) * 255).round().to(torch().uint8)
    return frame.permute(1, 2, 0).contiguous().cpu().numpy()
