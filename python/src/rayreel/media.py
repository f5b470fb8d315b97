"""Pictures in, MP4 and stills out. Needs `rayreel[media]`; no ffmpeg on the system."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.video.reformatter as reformatter
import numpy as np
import numpy.typing as npt
from PIL import Image

from rayreel.engine import Failed, InvalidRequest, Progress
from rayreel.wire import Output, Request

Picture = npt.NDArray[np.uint8]
"""Height by width by 3, RGB."""

THUMBNAIL_WIDTH = 320

X264 = {
    "crf": "17",
    "preset": "fast",
    "flags": "+bitexact",
    # Without its tree of macroblocks: with it, the same frames are not always the same bytes, even
    # with one thread; without its vector code they are.
    "x264-params": "mbtree=0",
}


class _Still(NamedTuple):
    pillow: str
    media_type: str
    options: dict[str, Any]


STILLS = {
    "png": _Still("PNG", "image/png", {}),
    "jpeg": _Still("JPEG", "image/jpeg", {"quality": 92, "subsampling": 0}),
    "webp": _Still("WEBP", "image/webp", {"quality": 92}),
}


def read_image(path: Path, field: str = "image") -> Image.Image:
    """The picture of a request, in RGB."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"{field} can't be read: {error}") from None


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in this size: scaled until it covers it, and cut evenly where it is too long."""
    scale = max(width / image.width, height / image.height)
    box_width, box_height = width / scale, height / scale
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def write_video(
    request: Request, pictures: Iterable[Picture], progress: Progress | None = None
) -> list[Output]:
    """`video.mp4`, H.264 with its index first, and a thumbnail of the first frame. Pictures of
    another number or size than the request asks for are `Failed`."""
    if request.format != "mp4":
        raise InvalidRequest(f"a video is mp4, not {request.format}")
    path = request.output_dir / "video.mp4"
    count, first = 0, None
    for count, picture in enumerate(_encoded(path, request.fps, _asked_for(request, pictures)), 1):
        first = picture if first is None else first
        if progress is not None:
            progress("encode", count, request.frames)
    if first is None or count != request.frames:
        raise _not_asked_for(f"{count} frames", f"{request.frames}")
    height, width, _ = first.shape
    video = Output("video.mp4", "video", "video/mp4", width, height, count, request.fps)
    return [video, _write_thumbnail(request, first)]


def _asked_for(request: Request, pictures: Iterable[Picture]) -> Iterable[Picture]:
    """The pictures, as long as they are what the request asks for."""
    for count, picture in enumerate(pictures, 1):
        if count > request.frames:
            raise _not_asked_for(f"more than {request.frames} frames", f"{request.frames}")
        _check_size(request, picture)
        yield picture


def _check_size(request: Request, picture: Picture) -> None:
    height, width, _ = picture.shape
    if (width, height) != (request.width, request.height):
        raise _not_asked_for(f"pictures of {width}x{height}", f"{request.width}x{request.height}")


def _not_asked_for(made: str, asked: str) -> Failed:
    # Another try would make the same.
    return Failed(f"the engine has made {made} instead of {asked}", retryable=False)


def _encoded(path: Path, fps: int, pictures: Iterable[Picture]) -> Iterable[Picture]:
    """Gives each picture back when it is encoded."""
    # Bit-exact: no date and no version in the file, so that the same frames are the same bytes.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    container: Any
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream: Any = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps))
                stream.height, stream.width, _ = picture.shape
                stream.pix_fmt = "yuv420p"
                stream.options = X264
                context = stream.codec_context
                context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
                context.color_range = 1  # 16 to 235
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=reformatter.Colorspace.ITU709,
                dst_color_range=reformatter.ColorRange.MPEG,
            )
            container.mux(stream.encode(frame))
            yield picture
        if stream is not None:
            container.mux(stream.encode())


def write_still(request: Request, picture: Picture) -> list[Output]:
    """`image.png`, or what the request's format says, and a thumbnail. A picture of another
    size than the request's is `Failed`."""
    still = STILLS.get(request.format)
    if still is None:
        known = ", ".join(STILLS)
        raise InvalidRequest(f"a still is one of {known}, not {request.format}")
    _check_size(request, picture)
    name = f"image.{request.format}"
    image = Image.fromarray(picture)
    image.save(request.output_dir / name, still.pillow, **still.options)
    return [
        Output(name, "image", still.media_type, image.width, image.height),
        _write_thumbnail(request, picture),
    ]


def _write_thumbnail(request: Request, picture: Picture) -> Output:
    image = Image.fromarray(picture)
    if image.width > THUMBNAIL_WIDTH:
        height = max(1, round(image.height * THUMBNAIL_WIDTH / image.width))
        image = image.resize((THUMBNAIL_WIDTH, height), Image.Resampling.LANCZOS)
    image.save(request.output_dir / "thumbnail.png", "PNG")
    return Output("thumbnail.png", "thumbnail", "image/png", image.width, image.height)
