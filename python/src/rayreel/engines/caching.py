"""Caches of denoisers: steps that are much like the one before are not computed in full.

Each kind is one of diffusers', with its settings. What diffusers has beside these does nothing
good to Wan: FasterCache wants both prompts in one batch, and Pyramid Attention Broadcast would
give the attention of the prompt to the negative one; Wan's pipelines ask the model for each.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from rayreel import settings
from rayreel.engine import LoadFailed


@dataclass(frozen=True)
class FirstBlock:
    """The first block is computed; if it changes little against the last step, the others are
    taken from there."""

    kind: Literal["first-block"]
    threshold: float = 0.05
    """Relative change of the first block's residual below which it is little."""


@dataclass(frozen=True)
class TaylorSeer:
    """The model's output is extrapolated from steps that were computed. (diffusers can extrapolate
    every layer, too, and would keep a hundred gigabytes for that at Wan's sizes.)"""

    kind: Literal["taylorseer"]
    interval: int = 5
    """One step of so many is computed."""
    warmup: int = 3
    """The first steps of each expert, all computed."""
    order: int = 1
    """Of the extrapolation: 0 repeats, 1 draws a line, 2 a curve."""


@dataclass(frozen=True)
class MagCache:
    """All blocks of a step are left out as long as the sum of the errors to be expected, known
    from a run before, stays small."""

    kind: Literal["magcache"]
    ratios: tuple[float, ...] = ()
    """How the residual's magnitude changes from step to step; of each checkpoint its own."""
    ratios_2: tuple[float, ...] = ()
    """The same, of the second expert."""
    calibrate: bool = False
    """Computes everything, and writes the ratios to the log."""
    threshold: float = 0.06
    max_skip: int = 3
    """Steps in a row that may be left out."""
    retention: float = 0.2
    """Share of the steps, the first ones, that are never left out."""


@dataclass(frozen=True)
class Sea:
    """All blocks of a step are left out as long as what it starts from, seen through a filter that
    follows the noise, has changed little. Of text alone."""

    kind: Literal["sea"]
    threshold: float = 0.25
    order: int = 1
    """Of the extrapolation: 0 repeats, 1 draws a line."""
    max_skip: int = 2


Cache = FirstBlock | TaylorSeer | MagCache | Sea


def enable(pipe: Any, cache: Cache | None, *, shared: bool = False) -> None:
    """Makes both experts of a pipeline use the cache; raises `LoadFailed` if it can't be. `shared`:
    each rank of a gang sees a share of the tokens only."""
    if cache is None:
        return
    _check(pipe, cache)
    if shared and isinstance(cache, MagCache):
        raise LoadFailed("setting `cache.kind` can't be magcache together with `ulysses` or `ring`")
    for model in _experts(pipe):
        try:
            model.enable_cache(_config(model, cache))
        except (ValueError, TypeError) as error:
            raise LoadFailed(f"setting `cache`: {error}") from error
        if shared and isinstance(cache, FirstBlock):
            _decide_together(model, cache.threshold)


def _decide_together(model: Any, threshold: float) -> None:
    """Has the ranks compare all that changed, not each its share: one that went on without the
    others would wait for them for ever. (Of the other caches, sea does so itself, and the rest
    count steps.)"""
    torch = importlib.import_module("torch")
    name = "fbc_leader_block_hook"
    registries = (getattr(block, "_diffusers_hook", None) for block in model.modules())
    hook = next(found for r in registries if r is not None and (found := r.get_hook(name)))

    def has_changed(residual: Any) -> bool:
        before = hook.state_manager.get_state().head_block_residual
        if before is None:
            return True
        change = torch.stack([(residual - before).abs().sum(), before.abs().sum()])
        torch.distributed.all_reduce(change)
        return bool(change[0] > threshold * change[1])

    hook._should_compute_remaining_blocks = has_changed


def begin(pipe: Any, cache: Cache | None, steps: int) -> None:
    """Before each generation: nothing of another one is left, and the cache knows the steps."""
    if cache is None:
        return
    for model, count in zip(_experts(pipe), _steps_of_experts(pipe, steps), strict=True):
        if isinstance(cache, MagCache):
            # Its steps are part of its configuration.
            ratios = cache.ratios if model is pipe.transformer else cache.ratios_2
            model.disable_cache()
            model.enable_cache(_mag_cache(cache, ratios, count))
        else:
            model._reset_stateful_cache()


def _experts(pipe: Any) -> list[Any]:
    return [model for model in (pipe.transformer, pipe.transformer_2) if model is not None]


def _check(pipe: Any, cache: Cache) -> None:
    def refuse(field: str, why: str) -> LoadFailed:
        return LoadFailed(f"setting `cache.{field}` {why}")

    two = pipe.transformer_2 is not None
    for field in ("threshold", "max_skip"):
        settings.at_least_0(f"cache.{field}", getattr(cache, field, None))
    match cache:
        case FirstBlock():
            pass
        case TaylorSeer():
            if cache.interval < 1:
                raise refuse("interval", "must be at least 1")
            if not 0 <= cache.order <= 2:
                raise refuse("order", "must be 0, 1 or 2")
            # So many points are needed to extrapolate from.
            if cache.warmup < 1:
                raise refuse("warmup", "must be at least 1")
        case MagCache():
            for field, needed in (("ratios", True), ("ratios_2", two)):
                given = bool(getattr(cache, field))
                if needed and not given and not cache.calibrate:
                    raise refuse(
                        field,
                        "is missing; `calibrate = true` writes a checkpoint's ratios to the log",
                    )
                if given and not needed:
                    raise refuse(field, "is for models with two experts")
            if not 0 <= cache.retention <= 1:
                raise refuse("retention", "must be from 0 to 1")
        case Sea():
            if not 0 <= cache.order <= 1:
                raise refuse("order", "must be 0 or 1")
            config = pipe.transformer.config
            if config.in_channels != config.out_channels:
                raise refuse("kind", "can't be sea: it is for models that take text alone")


def _config(model: Any, cache: Cache) -> Any:
    hooks = importlib.import_module("diffusers")
    match cache:
        case FirstBlock():
            return hooks.FirstBlockCacheConfig(threshold=cache.threshold)
        case TaylorSeer():
            return hooks.TaylorSeerCacheConfig(
                cache_interval=cache.interval,
                disable_cache_before_step=cache.warmup,
                max_order=cache.order,
                taylor_factors_dtype=model.dtype,
                use_lite_mode=True,
            )
        case MagCache():
            return _mag_cache(cache, (1.0,), 1)
        case Sea():
            return hooks.SeaCacheConfig(
                threshold=cache.threshold,
                residual_order=cache.order,
                max_consecutive_cached=cache.max_skip,
            )


def _mag_cache(cache: MagCache, ratios: tuple[float, ...], steps: int) -> Any:
    return importlib.import_module("diffusers").MagCacheConfig(
        threshold=cache.threshold,
        max_skip_steps=cache.max_skip,
        retention_ratio=cache.retention,
        num_inference_steps=max(1, steps),
        mag_ratios=list(ratios) or None,
        calibrate=cache.calibrate,
    )


def _steps_of_experts(pipe: Any, steps: int) -> list[int]:
    """How many steps each expert will make."""
    if pipe.transformer_2 is None:
        return [steps]
    # As the pipeline will do, and at its boundary.
    pipe.scheduler.set_timesteps(steps)
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    first = int((pipe.scheduler.timesteps >= boundary).sum())
    return [first, len(pipe.scheduler.timesteps) - first]
