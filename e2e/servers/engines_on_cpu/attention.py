"""Torch's attention, which vLLM-Omni has for every platform that it knows. A module of its own, as
importing its base asks for the platform."""

from __future__ import annotations

from typing import Any

from vllm_omni.diffusion.attention.backends.sdpa import SDPABackend, SDPAImpl


class Backend(SDPABackend):
    @staticmethod
    def get_impl_cls() -> type[SDPAImpl]:
        return _OnCpu


class _OnCpu(SDPAImpl):
    def forward(self, query: Any, key: Any, value: Any, attn_metadata: Any = None) -> Any:
        # Nothing in it is CUDA's own.
        return self.forward_cuda(query, key, value, attn_metadata)
