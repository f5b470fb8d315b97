"""LoRAs: loaded when a request first names them, kept for the next, scaled for each request."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayreel.engine import Failed, InvalidRequest, Progress
from rayreel.serving import is_out_of_memory
from rayreel.wire import Lora, LoraUse

KEPT = 8
"""LoRAs that stay loaded; beyond them the one that was used longest ago goes."""

PARTS = ("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Of a pipeline, what a LoRA may change."""


class Loras:
    """The LoRAs of one pipeline."""

    def __init__(self, registered: Mapping[str, Lora], kept: int = KEPT):
        self._registered = dict(registered)
        self._kept = kept
        # In the order of their use. Names of the configuration may have dots, adapters' may not.
        self._loaded: OrderedDict[str, str] = OrderedDict()
        self._counted = 0

    def forget(self) -> None:
        """The pipeline is gone, and its LoRAs with it."""
        self._loaded.clear()

    def use(self, pipe: Any, asked: tuple[LoraUse, ...], progress: Progress) -> None:
        """Makes the pipeline work with these LoRAs and no others, until the next call."""
        self._check(asked)
        # Of scale 0 it is the model without it, to the last bit.
        scales = {lora.name: lora.scale for lora in asked if lora.scale != 0}
        for name in scales:
            if name not in self._loaded:
                progress("load", 0, 1)
                self._load(pipe, name)
            self._loaded.move_to_end(name)
        for name in list(self._loaded)[: max(0, len(self._loaded) - self._kept)]:
            if name not in scales:
                self._drop(pipe, self._loaded.pop(name))
        self._activate(pipe, {self._loaded[name]: scale for name, scale in scales.items()})

    def _check(self, asked: tuple[LoraUse, ...]) -> None:
        names = [lora.name for lora in asked]
        for name in names:
            if name not in self._registered:
                known = ", ".join(sorted(self._registered))
                there = f"there is {known}" if known else "this model has none"
                raise InvalidRequest(f"there is no LoRA `{name}`; {there}")
            if names.count(name) > 1:
                raise InvalidRequest(f"the LoRA `{name}` is asked for twice")

    def _load(self, pipe: Any, name: str) -> None:
        self._counted += 1
        adapter = f"lora_{self._counted}"
        try:
            for part, path in self._files(pipe, name):
                self._load_file(pipe, name, part, path, adapter)
        except BaseException:
            self._drop(pipe, adapter)
            raise
        self._loaded[name] = adapter

    def _files(self, pipe: Any, name: str) -> list[tuple[str | None, Path]]:
        """Each file, and the part that it is for; None: the file itself says."""
        lora = self._registered[name]
        two = getattr(pipe, "transformer_2", None) is not None
        if not two:
            if lora.path is None:
                raise Failed(
                    f"the LoRA `{name}` has files for two experts, and this model has one: "
                    "register one file",
                    retryable=False,
                )
            return [(None, lora.path)]
        files = [("transformer", lora.path or lora.high), ("transformer_2", lora.path or lora.low)]
        return [(part, path) for part, path in files if path is not None]

    def _load_file(self, pipe: Any, name: str, part: str | None, path: Path, adapter: str) -> None:
        # Anything else might be a pickle, which runs what it likes.
        if path.suffix != ".safetensors":
            raise _unusable(name, path, "it must be a .safetensors file")
        if not path.is_file():
            raise _unusable(name, path, "there is no such file")
        how = {"load_into_transformer_2": True} if part == "transformer_2" else {}
        try:
            pipe.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=adapter,
                local_files_only=True,
                use_safetensors=True,
                **how,
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if "PEFT backend is required" in str(error):
                raise Failed(
                    "LoRAs need peft: install it with `pip install peft`", retryable=False
                ) from None
            raise _unusable(name, path, str(error)) from error
        if not any(_has(model, adapter) for key, model in _parts(pipe) if part in (None, key)):
            raise _unusable(name, path, "nothing in it belongs to this model")

    def _drop(self, pipe: Any, adapter: str) -> None:
        for _, model in _parts(pipe):
            if _has(model, adapter):
                _module("diffusers.utils").delete_adapter_layers(model, adapter)
                model.peft_config.pop(adapter, None)

    def _activate(self, pipe: Any, scales: dict[str, float]) -> None:
        tools = _module("diffusers.utils")
        for _, model in _parts(pipe):
            if not getattr(model, "peft_config", None):
                continue
            mine = {adapter: scale for adapter, scale in scales.items() if _has(model, adapter)}
            tools.set_adapter_layers(model, enabled=bool(mine))
            if mine:
                tools.set_weights_and_activate_adapters(model, list(mine), list(mine.values()))


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _parts(pipe: Any) -> Iterator[tuple[str, Any]]:
    for name in PARTS:
        if (model := getattr(pipe, name, None)) is not None:
            yield name, model


def _has(model: Any, adapter: str) -> bool:
    return adapter in (getattr(model, "peft_config", None) or {})


def _unusable(name: str, path: Path, why: str) -> Failed:
    return Failed(f"the LoRA `{name}` can't be used: {path}: {why}", retryable=False)
