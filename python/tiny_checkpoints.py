"""Writes tiny checkpoints with random weights, as diffusers reads them: for tests and for trying
out a server without a GPU. What they draw is noise. Nothing is downloaded.

    python tiny_checkpoints.py KIND DIRECTORY

KIND: wan-t2v, wan-i2v (two transformers, as the A14B models), wan-ti2v (as the 5B model),
stable-diffusion. The same KIND gives the same weights every time.

    python tiny_checkpoints.py KIND-lora FILE.safetensors

writes a LoRA for each.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = 32
"""Width of the text encoders."""


def library(name: str) -> Any:
    """Late, because it takes seconds; untyped, as its types do not survive a strict check."""
    return importlib.import_module(name)


def tokenizer() -> Any:
    transformers = library("transformers")

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    # Every printable character of ASCII is a piece; any other is unknown.
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def _text_encoder() -> tuple[Any, Any]:
    transformers = library("transformers")

    pieces = tokenizer()
    config = transformers.UMT5Config(
        vocab_size=len(pieces),
        d_model=TEXT,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return pieces, transformers.UMT5EncoderModel(config).eval()


def wan_scheduler() -> Any:
    diffusers = library("diffusers")

    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _wan_transformer(channels_in: int, channels_out: int) -> Any:
    diffusers = library("diffusers")

    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=channels_in,
        out_channels=channels_out,
        text_dim=TEXT,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def _wan_vae(**changes: Any) -> Any:
    diffusers, torch = library("diffusers"), library("torch")

    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        **changes,
    ).eval()
    with torch.no_grad():
        # As it is, pictures that go in hardly differ when they come out.
        vae.encoder.conv_out.weight *= 30
    return vae


def _wan_t2v() -> Any:
    diffusers = library("diffusers")

    pieces, text_encoder = _text_encoder()
    return diffusers.WanPipeline(
        tokenizer=pieces,
        text_encoder=text_encoder,
        vae=_wan_vae(),
        scheduler=wan_scheduler(),
        transformer=_wan_transformer(16, 16),
        transformer_2=_wan_transformer(16, 16),
        boundary_ratio=0.875,
    )


def _wan_i2v() -> Any:
    diffusers = library("diffusers")

    pieces, text_encoder = _text_encoder()
    return diffusers.WanImageToVideoPipeline(
        tokenizer=pieces,
        text_encoder=text_encoder,
        vae=_wan_vae(),
        scheduler=wan_scheduler(),
        transformer=_wan_transformer(36, 16),
        transformer_2=_wan_transformer(36, 16),
        boundary_ratio=0.9,
    )


def _wan_ti2v() -> Any:
    diffusers = library("diffusers")

    pieces, text_encoder = _text_encoder()
    vae = _wan_vae(
        decoder_base_dim=3,
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )
    return diffusers.WanPipeline(
        tokenizer=pieces,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=wan_scheduler(),
        transformer=_wan_transformer(48, 48),
        transformer_2=None,
        expand_timesteps=True,
    )


def _stable_diffusion() -> Any:
    diffusers = library("diffusers")
    transformers = library("transformers")

    letters: list[str] = list(
        library("transformers.convert_slow_tokenizer").bytes_to_unicode().values()
    )
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    ).eval()
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=2,
    ).eval()
    vae = diffusers.AutoencoderKL(
        block_out_channels=[4, 4, 4, 4],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=2,
    ).eval()
    return diffusers.StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler=diffusers.DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


KINDS: dict[str, Callable[[], Any]] = {
    "wan-t2v": _wan_t2v,
    "wan-i2v": _wan_i2v,
    "wan-ti2v": _wan_ti2v,
    "stable-diffusion": _stable_diffusion,
}


def write(kind: str, directory: Path) -> None:
    torch = library("torch")

    with torch.random.fork_rng():
        torch.manual_seed(0)
        KINDS[kind]().save_pretrained(directory, safe_serialization=True)


def write_lora(kind: str, path: Path, seed: int = 0, rank: int = 4) -> None:
    """Of every query and value of the denoiser."""
    torch = library("torch")

    pipe = KINDS[kind]()
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    noise = torch.Generator().manual_seed(seed)
    weights: dict[str, Any] = {}
    for place, layer in getattr(pipe, name).named_modules():
        if place.endswith((".to_q", ".to_v")):
            # Strong: a random direction that is too weak shows in no pixel.
            for part, shape in (
                ("lora_A", (rank, layer.in_features)),
                ("lora_B", (layer.out_features, rank)),
            ):
                weights[f"{name}.{place}.{part}.weight"] = torch.randn(shape, generator=noise)
    path.parent.mkdir(parents=True, exist_ok=True)
    library("safetensors.torch").save_file(weights, path)


def main() -> None:
    kind = sys.argv[1].removesuffix("-lora") if len(sys.argv) == 3 else None
    if kind not in KINDS:
        sys.exit(__doc__)
    if sys.argv[1].endswith("-lora"):
        write_lora(kind, Path(sys.argv[2]))
    else:
        write(kind, Path(sys.argv[2]))
    print(f"wrote {sys.argv[2]}")


if __name__ == "__main__":
    main()
