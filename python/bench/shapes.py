"""The shapes of Wan2.2's models, from the configurations that are published with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tiny_checkpoints
from rayreel.engines.diffusion import diffusers, torch


@dataclass(frozen=True)
class Shape:
    name: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    boundary: float | None
    """None: one expert."""
    shift: float
    guidance: float
    guidance_2: float | None
    steps: int
    frames: int
    fps: int
    sizes: dict[str, tuple[int, int]]
    official: dict[str, str] = field(default_factory=dict[str, str])
    """What Wan2.2's authors give for one GPU."""


COMMON: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}

UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}

SHAPES: dict[str, Shape] = {
    "5b": Shape(
        "TI2V-5B",
        COMMON | {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30,
                  "in_channels": 48, "out_channels": 48},
        {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12,
         "out_channels": 12, "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16,
         "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
        UMT5_XXL,
        boundary=None, shift=5, guidance=5, guidance_2=None, steps=50, frames=121, fps=24,
        sizes={"480p": (832, 480), "720p": (1280, 704)},
        official={"720p": "4090: 534.7 s, 22.9 GB"},
    ),
    "a14b": Shape(
        "T2V-A14B",
        COMMON | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40,
                  "in_channels": 16, "out_channels": 16},
        {"base_dim": 96, "z_dim": 16},
        UMT5_XXL,
        boundary=0.875, shift=12, guidance=4, guidance_2=3, steps=40, frames=81, fps=16,
        sizes={"480p": (832, 480), "720p": (1280, 720)},
        official={"480p": "H100: 326.9 s, 41.3 GB",
                  "720p": "H100: 1041.5 s, 59.8 GB; H20: 4048.7 s"},
    ),
}  # fmt: skip


def _tiny(shape: Shape, vae: dict[str, Any]) -> Shape:
    """The same, of the tiny checkpoints' width."""
    channels = shape.transformer["in_channels"]
    transformer = COMMON | {
        "num_attention_heads": 4, "attention_head_dim": 12, "text_dim": tiny_checkpoints.TEXT,
        "ffn_dim": 32, "num_layers": 2, "in_channels": channels, "out_channels": channels,
    }  # fmt: skip
    small = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | vae
    text = UMT5_XXL | {
        "vocab_size": 98, "d_model": tiny_checkpoints.TEXT, "d_kv": 8, "d_ff": 37,
        "num_layers": 2, "num_heads": 4,
    }  # fmt: skip
    return Shape(
        f"tiny {shape.name}", transformer, shape.vae | small, text, shape.boundary, shape.shift,
        shape.guidance, shape.guidance_2, 6, 5, 8, {"480p": (64, 64)},
    )  # fmt: skip


TINY = {
    "5b": _tiny(SHAPES["5b"], {"decoder_base_dim": 3}),
    "a14b": _tiny(SHAPES["a14b"], {}),
}


def build(shape: Shape, device: Any, dtype: Any) -> Any:
    """A pipeline of random weights, made on the device, in the dtypes that a checkpoint would
    have."""
    library, transformers = diffusers(), tiny_checkpoints.library("transformers")

    def made(kind: Any, dtype: Any, **config: Any) -> Any:
        before = torch().get_default_dtype()
        torch().set_default_dtype(dtype)
        try:
            with torch().device(device):
                model = kind(**config).eval()
        finally:
            torch().set_default_dtype(before)
        _keep(model)
        return model

    two = shape.boundary is not None
    encoder = transformers.UMT5Config(**shape.text_encoder)
    return library.WanPipeline(
        tokenizer=tiny_checkpoints.tokenizer(),
        text_encoder=made(transformers.UMT5EncoderModel, dtype, config=encoder),
        vae=made(library.AutoencoderKLWan, torch().float32, **shape.vae),
        scheduler=tiny_checkpoints.wan_scheduler(),
        transformer=made(library.WanTransformer3DModel, dtype, **shape.transformer),
        transformer_2=(
            made(library.WanTransformer3DModel, dtype, **shape.transformer) if two else None
        ),
        boundary_ratio=shape.boundary,
        expand_timesteps=not two,
    )


def _keep(model: Any) -> None:
    """What a model keeps in full precision whatever it is loaded in."""
    kept: list[str] = getattr(model, "_keep_in_fp32_modules", None) or []
    for name, weight in model.named_parameters():
        if any(part in kept for part in name.split(".")):
            weight.data = weight.data.float()
