"""`wan`: Wan2.2 on diffusers: text to video (t2v-A14B), image to video (i2v-A14B; first frame, or
first and last), and both in one model (ti2v-5B)."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from rayreel import settings
from rayreel.engine import InvalidRequest, LoadFailed, Progress
from rayreel.engines import caching
from rayreel.engines.caching import Cache
from rayreel.engines.diffusion import (
    Diffusion,
    Placement,
    check_guidance,
    diffusers,
    to_bytes,
    torch,
)
from rayreel.media import cover, read_image, write_still, write_video
from rayreel.wire import Load, Output, Request

# What hardly anybody wants to see. Wan's authors recommend a text of their own, which can be set.
NEGATIVE_PROMPT = (
    "blurred, overexposed, grey, still picture, subtitles, watermark, compression artefacts, "
    "deformed hands, deformed face, extra limbs, crowded background"
)

PROMPTS_KEPT = 64


@dataclass(frozen=True)
class Settings(Placement):
    flow_shift: float | None = None
    """Of the scheduler; None: as Wan2.2 has it for the task."""
    guidance: float | None = None
    """Of requests that name none; of the first expert (high noise) if there are two."""
    guidance_2: float | None = None
    """Of the second expert (low noise), of requests that name none. None: `guidance` of the request
    if it names one."""
    negative_prompt: str = NEGATIVE_PROMPT
    """Of requests that name none."""
    cache: Cache | None = None
    """Steps that are not computed in full: faster, and not quite the same."""


@dataclass(frozen=True)
class Task:
    """One of Wan2.2's models, with the figures of its authors."""

    name: str
    flow_shift: float
    guidance: float
    guidance_2: float | None = None


T2V = Task("t2v", flow_shift=12, guidance=4, guidance_2=3)
I2V = Task("i2v", flow_shift=5, guidance=3.5, guidance_2=3.5)
TI2V = Task("ti2v", flow_shift=5, guidance=5)


class Wan(Diffusion):
    name = "wan"
    remedy = f"try a smaller size or fewer frames; {Diffusion.remedy}"
    kinds = ("WanPipeline", "WanImageToVideoPipeline")

    settings: Settings
    task: Task

    def read_settings(self, load: Load) -> Placement:
        self.settings = read = settings.read(Settings, load.settings)
        settings.check("flow_shift", read.flow_shift, "be above 0", lambda shift: shift > 0)
        settings.at_least_0("guidance", read.guidance)
        settings.at_least_0("guidance_2", read.guidance_2)
        self._prompts: OrderedDict[str, Any] = OrderedDict()
        return self.settings

    def open(self, dtype: Any) -> Any:
        self.task = self._task()
        # The VAE loses too much in half precision.
        dtypes = {"default": dtype, "vae": torch().float32}
        pipe: Any = getattr(diffusers(), self.index["_class_name"]).from_pretrained(
            self.checkpoint,
            dtype=dtypes,
            local_files_only=True,
            use_safetensors=True,
            **self.quantised(dtype),
        )
        if pipe.transformer_2 is not None and pipe.config.boundary_ratio is None:
            raise LoadFailed(
                f"{self.checkpoint} has two transformers, but its model_index.json has no "
                "`boundary_ratio` to say where the second one begins"
            )
        shift = self.settings.flow_shift
        shift = self.task.flow_shift if shift is None else shift
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, flow_shift=shift)
        caching.enable(pipe, self.settings.cache, shared=self.gang.world > 1)
        return pipe

    def _task(self) -> Task:
        if self.index.get("expand_timesteps"):
            return TI2V
        return I2V if self.index["_class_name"] == "WanImageToVideoPipeline" else T2V

    def generate(self, request: Request, progress: Progress) -> list[Output]:
        self.ready(progress)
        self._check(request)
        pipe, images = self._pipe_for(request), self._images(request)
        guidance, guidance_2 = for_both_experts(*self._guidance(request))
        self.loras.use(self.pipe, request.loras, progress)
        with self.at_work(request, progress, self._decode_calls(request)):
            progress("encode_prompt", 0, 1)
            prompt = self._encoded(request.prompt)
            negative = request.negative_prompt or self.settings.negative_prompt
            progress("denoise", 0, request.steps)
            caching.begin(self.pipe, self.settings.cache, request.steps)
            film = pipe(
                **images,
                prompt_embeds=prompt,
                negative_prompt_embeds=self._encoded(negative) if guidance > 1 else None,
                width=request.width,
                height=request.height,
                num_frames=request.frames,
                num_inference_steps=request.steps,
                guidance_scale=guidance,
                guidance_scale_2=guidance_2,
                generator=self.noise(request),
                output_type="pt",
                callback_on_step_end=self.on_step(progress),
            ).frames[0]
        if request.format == "mp4":
            return write_video(request, map(to_bytes, film), progress)
        progress("encode", 0, 1)
        return write_still(request, to_bytes(film[0]))

    def _check(self, request: Request) -> None:
        multiple = self._spatial() * self._denoiser().config.patch_size[1]
        sides = request.width, request.height
        if any(side < multiple or side % multiple for side in sides):
            size = f"{request.width}x{request.height}"
            raise InvalidRequest(f"width and height are multiples of {multiple}, not {size}")
        if request.frames % 4 != 1:
            raise InvalidRequest(f"frames is 4n+1, not {request.frames}")
        if request.format != "mp4" and request.frames != 1:
            raise InvalidRequest(f"a still has 1 frame, not {request.frames}")
        if request.steps < 1 or request.fps < 1:
            raise InvalidRequest("steps and fps are at least 1")
        check_guidance(request)
        if request.image is None and self.task is I2V:
            raise InvalidRequest("this model makes videos of images: give `image`")
        if request.image is not None and self.task is T2V:
            raise InvalidRequest("this model makes videos of text alone: leave out `image`")
        frames = (request.frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        self.spread.check(frames * (request.width // multiple) * (request.height // multiple))
        if request.last_image is not None:
            if self.task is not I2V:
                raise InvalidRequest("this model can't be given its last frame")
            if request.image is None or request.frames == 1:
                raise InvalidRequest("last_image needs an image, and more than 1 frame")
        if request.guidance_2 is not None and self.pipe.transformer_2 is None:
            raise InvalidRequest("this model has one expert: leave out `guidance_2`")

    def _guidance(self, request: Request) -> tuple[float, float | None]:
        first, second = self.settings.guidance, self.settings.guidance_2
        if request.guidance_2 is not None:
            second = request.guidance_2
        guidance = request.guidance if request.guidance is not None else first
        if self.pipe.transformer_2 is None:
            return (self.task.guidance if guidance is None else guidance), None
        if guidance is None:
            return self.task.guidance, self.task.guidance_2 if second is None else second
        return guidance, guidance if second is None else second

    def _images(self, request: Request) -> dict[str, Any]:
        given = {"image": request.image, "last_image": request.last_image}
        return {
            name: cover(read_image(path, name), request.width, request.height)
            for name, path in given.items()
            if path is not None
        }

    def _pipe_for(self, request: Request) -> Any:
        """The pipeline that takes what the request gives: the 5B model has one for each."""
        if self.task is not TI2V or request.image is None:
            return self.pipe
        pipe = diffusers().WanImageToVideoPipeline(
            **self.pipe.components, expand_timesteps=self.pipe.config.expand_timesteps
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _encoded(self, text: str) -> Any:
        """The text as the model reads it, kept: the negative one, at least, comes again."""
        kept = self._prompts.pop(text, None)
        if kept is None:
            kept, _ = self.pipe.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=512
            )
            kept = kept.cpu()
        self._prompts[text] = kept
        while len(self._prompts) > PROMPTS_KEPT:
            self._prompts.popitem(last=False)
        return kept.to(self.pipe._execution_device)  # pyright: ignore[reportPrivateUsage]

    def _denoiser(self) -> Any:
        return self.pipe.transformer or self.pipe.transformer_2

    def _spatial(self) -> int:
        return self.pipe.vae_scale_factor_spatial

    def _decode_calls(self, request: Request) -> int:
        """How often the VAE's decoder will be asked: once for each latent frame of each tile."""
        vae = self.pipe.vae
        frames = (request.frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        scale = self._spatial()
        if not vae.use_tiling or (
            request.height <= vae.tile_sample_min_height
            and request.width <= vae.tile_sample_min_width
        ):
            return frames
        rows = -(-(request.height // scale) // (vae.tile_sample_stride_height // scale))
        columns = -(-(request.width // scale) // (vae.tile_sample_stride_width // scale))
        return frames * rows * columns


def for_both_experts(guidance: float, guidance_2: float | None) -> tuple[float, float | None]:
    """The scales as diffusers must be told them: it looks at the first alone to see if there is any
    guidance, which there is above 1."""
    if guidance_2 is None or guidance_2 <= 1 >= guidance:
        return guidance, guidance_2
    # As close to 1 as can be, where float32 has 1 already: then the negative prompt weighs nothing.
    return max(guidance, math.nextafter(1, 2)), max(guidance_2, 1.0)
