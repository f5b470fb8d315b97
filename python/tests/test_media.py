"""What is written is what other programs read."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest

pytest.importorskip("av", reason="rayreel[media] is not installed")

import av
import numpy as np
from PIL import Image

from rayreel import Failed, InvalidRequest, Request, media


def request(directory: Path, format: str = "mp4", frames: int = 9) -> Request:
    return Request("id", directory, "a fox", 64, 48, frames, 12, 4, 1, format)


def flat(red: int, green: int, blue: int) -> media.Picture:
    return np.full((48, 64, 3), (red, green, blue), dtype=np.uint8)


def test_colours_survive(tmp_path: Path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    media.write_video(request(tmp_path, frames=6), (flat(*colour) for colour in colours))
    with av.open(str(tmp_path / "video.mp4")) as film:
        context = film.streams.video[0].codec_context
        # BT.709 in the narrow range, and it says so.
        assert (context.colorspace, context.color_range) == (1, 1)
        for frame, colour in zip(film.decode(video=0), colours, strict=True):
            frame = frame.reformat(format="rgb24", src_colorspace=1)
            assert np.abs(frame.to_ndarray().astype(int) - colour).max() <= 6, colour


def test_frames_come_at_their_rate_and_play_while_they_download(tmp_path: Path):
    files = media.write_video(request(tmp_path), [flat(n * 20, 0, 0) for n in range(9)])
    assert (files[0].frames, files[0].fps) == (9, 12)
    with av.open(str(tmp_path / "video.mp4")) as film:
        times = [frame.time for frame in film.decode(video=0)]
    assert times == pytest.approx([n / 12 for n in range(9)], abs=1e-4)
    file = (tmp_path / "video.mp4").read_bytes()
    assert file.index(b"moov") < file.index(b"mdat")


def test_a_thumbnail_is_no_wider_than_it_should_be(tmp_path: Path):
    wide = np.zeros((100, 1000, 3), dtype=np.uint8)
    asked = dataclasses.replace(request(tmp_path, "png", 1), width=1000, height=100)
    thumbnail = media.write_still(asked, wide)[1]
    assert (thumbnail.width, thumbnail.height) == (320, 32)
    with Image.open(tmp_path / thumbnail.path) as image:
        assert image.size == (320, 32)


def test_a_picture_covers_what_it_is_asked_to_cover():
    picture = Image.new("RGB", (300, 100), (0, 0, 0))
    picture.paste((255, 255, 255), (100, 0, 200, 100))
    covered = np.asarray(media.cover(picture, 64, 64))
    assert covered.shape == (64, 64, 3)
    assert covered[:, 2:-2].min() >= 250


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_what_is_no_picture_is_the_requests_fault(tmp_path: Path, content: bytes):
    path = tmp_path / "input.png"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"^last_image can't be read: "):
        media.read_image(path, "last_image")


def test_a_picture_with_transparency_is_taken(tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(file, "PNG")
    path = tmp_path / "input.png"
    path.write_bytes(file.getvalue())
    assert media.read_image(path).mode == "RGB"


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (0, "the engine has made 0 frames instead of 9"),
        (8, "the engine has made 8 frames instead of 9"),
        (10, "the engine has made more than 9 frames instead of 9"),
    ],
)
def test_a_film_has_the_frames_that_were_asked_for(tmp_path: Path, frames: int, why: str):
    with pytest.raises(Failed) as failed:
        media.write_video(request(tmp_path), [flat(0, 0, 0)] * frames)
    assert (str(failed.value), failed.value.retryable) == (why, False)


@pytest.mark.parametrize("format", ["mp4", "png"])
def test_pictures_have_the_size_that_was_asked_for(tmp_path: Path, format: str):
    asked = request(tmp_path, format, 1)
    turned = flat(0, 0, 0).transpose(1, 0, 2)

    def write() -> None:
        if format == "mp4":
            media.write_video(asked, [turned])
        else:
            media.write_still(asked, turned)

    with pytest.raises(Failed, match=r"pictures of 48x64 instead of 64x48"):
        write()


@pytest.mark.parametrize("format", ["png", "gif"])
def test_a_video_is_written_as_a_video_alone(tmp_path: Path, format: str):
    with pytest.raises(InvalidRequest, match=f"^a video is mp4, not {format}$"):
        media.write_video(request(tmp_path, format), [flat(0, 0, 0)] * 9)
    assert list(tmp_path.iterdir()) == []
