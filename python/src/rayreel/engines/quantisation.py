"""Quantised weights: less GPU memory for almost the same picture."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayreel.engine import LoadFailed
from rayreel.serving import is_out_of_memory


@dataclass(frozen=True)
class Quantised:
    """Weights that are quantised while they are loaded.

    int8, float8: 8 bits, computed in the model's dtype (torchao). int8-dynamic, float8-dynamic: the
    products are computed in 8 bits, too, which is faster where the GPU has them. nf4: 4 bits
    (bitsandbytes)."""

    kind: Literal["int8", "float8", "int8-dynamic", "float8-dynamic", "nf4"]
    text_encoder: bool = False
    """The text encoder, too, not only the denoiser."""


@dataclass(frozen=True)
class Gguf:
    """Weights of the denoiser from GGUF files, which others have quantised."""

    kind: Literal["gguf"]
    transformer: str
    """Path of the file; of the expert for high noise if there are two."""
    transformer_2: str | None = None


Quantisation = Quantised | Gguf

DENOISERS = ("transformer", "transformer_2", "unet")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def arguments(
    how: Quantisation | None, checkpoint: Path, index: Mapping[str, Any], dtype: Any, device: Any
) -> dict[str, Any]:
    """What `from_pretrained` of the pipeline is told, `index` being the checkpoint's. Raises
    `LoadFailed` if it can't be done here."""
    match how:
        case None:
            return {}
        case Gguf():
            return _from_files(how, checkpoint, index, dtype)
        case Quantised():
            return {"quantization_config": _config(how, index, dtype, device)}


def _config(how: Quantised, index: Mapping[str, Any], dtype: Any, device: Any) -> Any:
    _need(how.kind, "bitsandbytes" if how.kind == "nf4" else "torchao")
    if device.type == "cpu" and how.kind in ("nf4", "float8-dynamic"):
        raise LoadFailed(f"setting `quantisation`: {how.kind} needs a GPU")
    diffusers, transformers = _module("diffusers"), _module("transformers")

    def config(library: Any) -> Any:
        if how.kind == "nf4":
            return library.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        torchao = _module("torchao.quantization")
        kinds = {
            "int8": torchao.Int8WeightOnlyConfig,
            "float8": torchao.Float8WeightOnlyConfig,
            "int8-dynamic": torchao.Int8DynamicActivationInt8WeightConfig,
            "float8-dynamic": torchao.Float8DynamicActivationFloat8WeightConfig,
        }
        return library.TorchAoConfig(kinds[how.kind]())

    # One for each: they are filled in while the model is loaded.
    parts = {name: config(diffusers) for name in _present(index, DENOISERS)}
    if how.text_encoder:
        parts |= {name: config(transformers) for name in _present(index, TEXT_ENCODERS)}
    return diffusers.PipelineQuantizationConfig(quant_mapping=parts)


def _from_files(
    how: Gguf, checkpoint: Path, index: Mapping[str, Any], dtype: Any
) -> dict[str, Any]:
    _need("gguf", "gguf")
    diffusers = _module("diffusers")
    files = {"transformer": how.transformer, "transformer_2": how.transformer_2}
    experts = _present(index, tuple(files))
    if not experts:
        raise LoadFailed("setting `quantisation`: gguf is for models with a transformer")
    models: dict[str, Any] = {}
    for name, file in files.items():
        if (file is not None) != (name in experts):
            why = "is missing: this model has two experts" if file is None else "is one too many"
            raise LoadFailed(f"setting `quantisation.{name}` {why}")
        if file is None:
            continue
        if not Path(file).is_absolute():
            # Relative to where the worker happens to run, which nobody knows.
            raise LoadFailed(f"setting `quantisation.{name}` must be an absolute path, not {file}")
        if not Path(file).is_file():
            raise LoadFailed(f"setting `quantisation.{name}`: there is no file {file}")
        kind = getattr(diffusers, index[name][1])
        try:
            models[name] = kind.from_single_file(
                file,
                quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
                # Its shape is the checkpoint's; nothing is looked up elsewhere.
                config=str(checkpoint),
                subfolder=name,
                local_files_only=True,
                torch_dtype=dtype,
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise LoadFailed(f"setting `quantisation.{name}`: {file}: {error}") from error
        missing = [key for key, weight in models[name].named_parameters() if weight.is_meta]
        if missing:
            raise LoadFailed(f"setting `quantisation.{name}`: {file} has no {missing[0]}")
    return models


def _present(index: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Those parts that the checkpoint has."""
    return [name for name in names if (index.get(name) or [None])[0] is not None]


def _need(kind: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise LoadFailed(
            f"setting `quantisation`: {kind} needs {package}: "
            f"install it with `pip install {package}`"
        )


def _module(name: str) -> Any:
    return importlib.import_module(name)
