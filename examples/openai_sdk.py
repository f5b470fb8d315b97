"""A video and an image with OpenAI's Python SDK, which needs no change.

    pip install openai
    rayreel serve                                     # in another terminal
    export OPENAI_BASE_URL=http://127.0.0.1:8088/v1
    export OPENAI_API_KEY=rr_…                        # any text, while the server has no keys
    python3 openai_sdk.py
"""

import base64

from openai import APIError, OpenAI


def main(client):
    # A video: submitted, polled until it ends, downloaded. What OpenAI's own service has not goes into
    # `extra_body`: negative_prompt, fps, num_frames, num_inference_steps, guidance_scale, seed, priority,
    # deadline, metadata.
    video = client.videos.create_and_poll(
        prompt="a red fox running through snow",
        seconds="2",
        size="640x352",
        extra_body={"seed": 7, "num_inference_steps": 10, "metadata": {"shot": "12b"}},
    )
    if video.status == "failed":
        raise SystemExit(f"{video.error.code}: {video.error.message}")
    client.videos.download_content(video.id).write_to_file("fox.mp4")
    client.videos.download_content(video.id, variant="thumbnail").write_to_file("fox.png")
    print("fox.mp4, fox.png:", video.id)

    # The same request with another prompt.
    remix = client.videos.remix(video.id, prompt="a grey wolf running through snow")
    remix = client.videos.poll(remix.id)
    print("a remix of", remix.remixed_from_video_id, "is", remix.status)

    # A video that starts from an image.
    with open("fox.png", "rb") as image:
        video = client.videos.create_and_poll(
            prompt="the fox turns its head", size="640x352", input_reference=image
        )
    print("from an image:", video.status)

    # All videos, newest first; the SDK asks for the next page when it is due. Collected before any is
    # deleted: a page goes on behind the last video of the one before.
    for video in list(client.videos.list(limit=2)):
        print(video.id, video.status, video.seconds, video.size, video.prompt)
        client.videos.delete(video.id)

    # An image; the call waits for it.
    images = client.images.generate(prompt="a red fox in snow", size="512x512", n=2)
    for number, image in enumerate(images.data):
        with open(f"image-{number}.png", "wb") as file:
            file.write(base64.b64decode(image.b64_json))
    print("image-0.png, image-1.png")


if __name__ == "__main__":
    try:
        main(OpenAI())
    except APIError as error:
        raise SystemExit(f"{error.code}: {error.message}") from None
