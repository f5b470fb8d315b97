"""`stable-diffusion`: stills of text, or of a picture and text, on diffusers: whatever pipeline it
knows for both, from Stable Diffusion 1.5 on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayreel import settings
from rayreel.engine import Failed, InvalidRequest, LoadFailed, Progress
from rayreel.engines.diffusion import Diffusion, Placement, check_guidance, diffusers, to_bytes
from rayreel.media import STILLS, cover, read_image, write_still
from rayreel.wire import Load, Output, Request


@dataclass(frozen=True)
class Settings(Placement):
    strength: float = 0.8
    """How far an image is taken apart before it is drawn again: above 0, to 1. Of the steps that
    are asked for, this share is made."""
    guidance: float | None = None
    """Of requests that name none; None: the pipeline's own."""


class StableDiffusion(Diffusion):
    name = "stable-diffusion"
    remedy = f"try a smaller size; {Diffusion.remedy}"

    settings: Settings

    def read_settings(self, load: Load) -> Placement:
        self.settings = settings.read(Settings, load.settings)
        settings.check(
            "strength",
            self.settings.strength,
            "be above 0, and at most 1",
            lambda strength: 0 < strength <= 1,
        )
        settings.at_least_0("guidance", self.settings.guidance)
        if self.settings.ulysses != 1 or self.settings.ring != 1:
            raise LoadFailed("this engine runs on one GPU: leave out `ulysses` and `ring`")
        return self.settings

    def open(self, dtype: Any) -> Any:
        return diffusers().AutoPipelineForText2Image.from_pretrained(
            self.checkpoint,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            **self.quantised(dtype),
        )

    def generate(self, request: Request, progress: Progress) -> list[Output]:
        self.ready(progress)
        self._check(request)
        how: dict[str, Any] = {"width": request.width, "height": request.height}
        pipe = self.pipe
        if request.image is not None:
            pipe = diffusers().AutoPipelineForImage2Image.from_pipe(self.pipe)
            pipe.set_progress_bar_config(disable=True)
            image = cover(read_image(request.image), request.width, request.height)
            # Of few steps at least one is made. diffusers rounds down, and 49 times 1/49 is not 1.
            strength = min(1.0, max(self.settings.strength, (1 + 1e-9) / request.steps))
            how = {"image": image, "strength": strength}
        self.loras.use(self.pipe, request.loras, progress)
        guidance = self.settings.guidance if request.guidance is None else request.guidance
        if guidance is not None:
            how["guidance_scale"] = guidance
        with self.at_work(request, progress, decode_calls=1):
            progress("denoise", 0, request.steps)
            drawn = pipe(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt or None,
                num_inference_steps=request.steps,
                generator=self.noise(request),
                output_type="pt",
                callback_on_step_end=self.on_step(progress),
                **how,
            )
        # What it finds it paints black; most pipelines have none.
        if any(getattr(drawn, "nsfw_content_detected", None) or ()):
            raise Failed(
                "the model's safety checker has held back the picture; "
                "ask for something else, or with another seed",
                retryable=False,
            )
        progress("encode", 0, 1)
        return write_still(request, to_bytes(drawn.images[0]))

    def _check(self, request: Request) -> None:
        if request.format not in STILLS or request.frames != 1:
            kinds = ", ".join(STILLS)
            raise InvalidRequest(f"this model makes stills: ask for 1 frame, in {kinds}")
        multiple = self.pipe.vae_scale_factor
        if any(side < multiple or side % multiple for side in (request.width, request.height)):
            size = f"{request.width}x{request.height}"
            raise InvalidRequest(f"width and height are multiples of {multiple}, not {size}")
        if request.steps < 1:
            raise InvalidRequest("steps is at least 1")
        check_guidance(request)
        if request.last_image is not None:
            raise InvalidRequest("this model knows no last frame")
        if request.guidance_2 is not None:
            raise InvalidRequest("this model has one expert: leave out `guidance_2`")
