"""SGLang 0.5.23 has a CPU platform, but two fused operators of it are in none of the published
wheels of `sglang-kernel`. Here they are in plain torch, as its own layers compute them elsewhere:
`multimodal_gen/runtime/layers/layernorm.py`, `forward_native`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

_library = torch.library.Library("sgl_kernel", "FRAGMENT")


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float) -> Tensor:
    """`x`: (batch, tokens, channels), of any type; float32 of the same shape."""
    x = x.float()
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    if kind == "layer":
        return layer_norm(x, x.shape[-1:], weight, bias, eps)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _norm_scale_shift(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor, shift: Tensor, kind: str,
    eps: float,
) -> Tensor:  # fmt: skip
    return (_norm(x, weight, bias, kind, eps) * (1 + scale.float()) + shift.float()).to(x.dtype)


def _residual_norm_scale_shift(
    residual: Tensor, x: Tensor, gate: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    scale: Tensor, shift: Tensor, kind: str, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    residual = (residual + (x if gate is None else x * gate)).to(x.dtype)
    return _norm_scale_shift(residual, weight, bias, scale, shift, kind, eps), residual


def register() -> None:
    _library.define(
        "fused_norm_scale_shift_cpu(Tensor x, Tensor? weight, Tensor? bias, Tensor scale, "
        "Tensor shift, str kind, float eps) -> Tensor"
    )
    _library.define(
        "fused_scale_residual_norm_scale_shift_cpu(Tensor residual, Tensor x, Tensor? gate, "
        "Tensor? weight, Tensor? bias, Tensor scale, Tensor shift, str kind, float eps) "
        "-> (Tensor, Tensor)"
    )
    _library.impl("fused_norm_scale_shift_cpu", _norm_scale_shift, "CPU")
    _library.impl("fused_scale_residual_norm_scale_shift_cpu", _residual_norm_scale_shift, "CPU")
