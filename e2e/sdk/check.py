"""OpenAI's own Python SDK, unmodified, against the real server: `check.py BINARY
[TEST …]`.

The server has a key, as one that others may reach has. Everything that a client of the service that
the SDK was made for would do is done here; the example of the documentation is run as it is.
"""

import asyncio
import base64
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
import warnings
import zlib

import openai

# The SDK says of its video calls that the service which it was made for has ended.
warnings.filterwarnings("ignore", category=DeprecationWarning)

HERE = os.path.dirname(os.path.abspath(__file__))
WAIT = 60  # seconds for anything on a slow machine
NOBODY = "task_018bcfe5680070707070707070707070"

CONFIG = f"""
default_model = "testcard"
[models.testcard]
aliases = ["sora-2"]
settings = {{ step_ms = 1 }}
# Never ends by itself.
[models.slow]
engine = "testcard"
settings = {{ step_ms = 600000 }}
[models.refuses]
command = [{json.dumps(sys.executable)}, {json.dumps(HERE + "/refuses.py")}]
"""


class Server:
    """The server of all tests, and a key for it."""

    def __init__(self, binary, folder):
        config = f"{folder}/rayreel.toml"
        with open(config, "w") as file:
            file.write(CONFIG)
        self.log = open(f"{folder}/log", "w+")
        self.process = subprocess.Popen(
            [binary, "--config", config, "serve", "--listen", "127.0.0.1:0",
             "--data", f"{folder}/data"],
            stdout=self.log, stderr=self.log, cwd=folder,
        )
        try:
            info = f"{folder}/data/server.json"
            until(lambda: os.path.exists(info) or self.process.poll() is not None)
            with open(info) as file:
                self.url = json.load(file)["url"]
        except BaseException:
            self.stop()
            raise
        self.key = None
        self.key = self.call("POST", "/v1/admin/keys", {"name": "sdk"})["key"]

    def call(self, method, path, body=None):
        """A call of the native API."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.seek(0)
        text = self.log.read()
        self.log.close()
        return text


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.02)


def png(width, height):
    """A grey picture."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def size_of(image):
    """Width and height of a PNG."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n", image[:16]
    return struct.unpack(">II", image[16:24])


SMALL = {"size": "128x96", "extra_body": {"num_frames": 5, "num_inference_steps": 2}}


class Sdk(unittest.TestCase):
    server = None
    folder = None

    def setUp(self):
        # The SDK polls for as long as a video has not ended.
        signal.alarm(WAIT)
        self.client = openai.OpenAI(
            base_url=f"{self.server.url}/v1", api_key=self.server.key, timeout=WAIT, max_retries=0
        )
        self.videos = self.client.videos

    def tearDown(self):
        for video in list(self.videos.list()):
            self.videos.delete(video.id)
        self.client.close()
        signal.alarm(0)

    def native(self, video):
        return self.server.call("GET", f"/v1/video/generations/{video.id}")

    def test_create_and_poll(self):
        video = self.videos.create_and_poll(
            model="sora-2", prompt="a fox", seconds="2", size="128x96",
            extra_body={
                "seed": 7, "fps": 8, "num_inference_steps": 2, "guidance_scale": 4.5,
                "negative_prompt": "rain", "metadata": {"a": "b", "shot": "12"},
            },
        )
        self.assertEqual((video.status, video.progress, video.error), ("completed", 100, None))
        self.assertEqual((video.seconds, video.size, video.prompt), ("2", "128x96", "a fox"))
        self.assertEqual((video.object, video.model), ("video", "testcard"))
        self.assertGreaterEqual(video.completed_at, video.created_at)
        asked = self.native(video)["request"]
        self.assertEqual((asked["seed"], asked["frames"], asked["steps"]), (7, 17, 2))
        self.assertEqual((asked["guidance"], asked["negative_prompt"]), (4.5, "rain"))
        self.assertEqual(asked["metadata"], {"a": "b", "shot": "12"})
        self.assertEqual(self.videos.retrieve(video.id), video)

    def test_input_reference(self):
        picture = png(128, 96)
        for reference in [("fox.png", picture), ("fox.png", io.BytesIO(picture)), picture]:
            video = self.videos.create_and_poll(prompt="p", input_reference=reference, **SMALL)
            self.assertEqual(video.status, "completed", video.error)
            self.assertTrue(self.native(video)["request"]["image"])
        data = "data:image/png;base64," + base64.b64encode(picture).decode()
        file = self.client.files.create(file=("fox.png", picture), purpose="vision")
        for named in [{"image_url": data}, {"file_id": file.id}]:
            body = {"input_reference": named, "num_frames": 5}
            video = self.videos.create(prompt="p", size="128x96", extra_body=body)
            self.assertTrue(self.native(video)["request"]["image"])

    def test_list(self):
        made = [self.videos.create(prompt=f"p{n}", **SMALL).id for n in range(5)]
        native = self.server.call("POST", "/v1/video/generations", {"prompt": "native"})
        self.server.call("POST", "/v1/video/generations", {"prompt": "still", "format": "png"})
        newest_first = [native["id"], *reversed(made)]
        self.assertEqual([video.id for video in self.videos.list(limit=2)], newest_first)
        oldest_first = list(reversed(newest_first))
        pages = self.videos.list(limit=4, order="asc")
        self.assertEqual([video.id for video in pages], oldest_first)
        first = self.videos.list(limit=4)
        self.assertTrue(first.has_next_page())
        second = first.get_next_page()
        self.assertEqual([video.id for video in second.data], newest_first[4:])
        self.assertFalse(second.has_next_page())
        self.assertEqual(self.videos.list(after=made[0]).data, [])
        with self.assertRaises(openai.BadRequestError) as refused:
            self.videos.list(after=NOBODY)
        self.assertEqual(refused.exception.param, "after")

    def test_a_list_that_is_emptied_while_it_is_read(self):
        made = [self.videos.create(model="slow", prompt=f"p{n}").id for n in range(7)]
        seen = []
        for video in self.videos.list(limit=3):
            self.videos.delete(video.id)
            seen.append(video.id)
        self.assertEqual(seen, list(reversed(made)))
        self.assertEqual(self.videos.list().data, [])

    def test_download_content(self):
        video = self.videos.create_and_poll(prompt="p", **SMALL)
        self.assertEqual(self.videos.download_content(video.id).read()[4:8], b"ftyp")
        path = f"{self.folder}/still.png"
        self.videos.download_content(video.id, variant="thumbnail").write_to_file(path)
        with open(path, "rb") as file:
            size_of(file.read())
        with self.assertRaises(openai.BadRequestError) as refused:
            self.videos.download_content(video.id, variant="spritesheet")
        self.assertEqual(refused.exception.param, "variant")
        with self.videos.with_streaming_response.download_content(video.id) as response:
            self.assertEqual(response.headers["content-type"], "video/mp4")
            self.assertGreater(sum(len(piece) for piece in response.iter_bytes(1000)), 1000)

        with self.videos.with_streaming_response.download_content(
            video.id, variant="thumbnail"
        ) as response:
            self.assertEqual(response.headers["content-type"], "image/png")
            path = f"{self.folder}/streamed.png"
            response.stream_to_file(path)
        with open(path, "rb") as file:
            size_of(file.read())

    def test_the_async_client(self):
        async def use():
            async with openai.AsyncOpenAI(
                base_url=f"{self.server.url}/v1", api_key=self.server.key, timeout=WAIT,
                max_retries=0,
            ) as client:
                made = await asyncio.gather(*[
                    client.videos.create_and_poll(prompt=f"p{n}", **SMALL) for n in range(3)
                ])
                self.assertEqual({video.status for video in made}, {"completed"})
                content = await client.videos.download_content(made[0].id)
                self.assertEqual((await content.aread())[4:8], b"ftyp")
                streamed = client.videos.with_streaming_response.download_content(made[0].id)
                async with streamed as response:
                    pieces = [len(piece) async for piece in response.iter_bytes(1000)]
                self.assertGreater(sum(pieces), 1000)
                images = await client.images.generate(
                    prompt="a fox", size="128x96", extra_body={"num_inference_steps": 2}
                )
                size_of(base64.b64decode(images.data[0].b64_json))
                seen = []
                async for video in client.videos.list(limit=2):
                    await client.videos.delete(video.id)
                    seen.append(video.id)
                self.assertEqual(set(seen), {video.id for video in made})

        asyncio.run(use())

    def test_files(self):
        def create(**options):
            file = ("fox.png", png(128, 96))
            return self.client.files.create(file=file, purpose="vision", **options)

        for seconds in [3_600, 604_800]:
            file = create(expires_after={"anchor": "created_at", "seconds": seconds})
            self.assertEqual(file.expires_at - file.created_at, seconds)
        self.assertEqual(create().expires_at - create().created_at, 604_800)
        with self.assertRaises(openai.BadRequestError) as refused:
            create(expires_after={"anchor": "created_at", "seconds": 2_592_000})
        self.assertEqual(refused.exception.param, "expires_after.seconds")
        self.assertIn("604800", refused.exception.message)
        files = list(self.client.files.list(limit=2))
        self.assertEqual(len(files), 4)
        size_of(self.client.files.content(file.id).read())
        for file in files:
            self.assertTrue(self.client.files.delete(file.id).deleted)

    def test_delete(self):
        done = self.videos.create_and_poll(prompt="p", **SMALL)
        running = self.videos.create(model="slow", prompt="p")
        until(lambda: self.videos.retrieve(running.id).status == "in_progress")
        queued = self.videos.create(model="slow", prompt="p")
        for video in [done, queued, running]:
            gone = self.videos.delete(video.id)
            self.assertEqual((gone.id, gone.deleted, gone.object), (video.id, True, "video.deleted"))
            for call in [self.videos.retrieve, self.videos.delete, self.videos.download_content]:
                with self.assertRaises(openai.NotFoundError):
                    call(video.id)

    def test_remix(self):
        source = self.videos.create_and_poll(
            prompt="a fox", seconds="1", size="128x96",
            extra_body={"seed": 7, "num_inference_steps": 2},
            input_reference=("a.png", png(128, 96)),
        )
        remix = self.videos.remix(source.id, prompt="a wolf")
        self.assertEqual((remix.remixed_from_video_id, remix.prompt), (source.id, "a wolf"))
        remix = self.videos.poll(remix.id)
        self.assertEqual(remix.status, "completed", remix.error)
        old, new = self.native(source)["request"], self.native(remix)["request"]
        self.assertEqual({**old, "prompt": "a wolf"}, new)
        running = self.videos.create(model="slow", prompt="p")
        with self.assertRaises(openai.BadRequestError):
            self.videos.remix(running.id, prompt="a wolf")

    def test_a_failed_video(self):
        video = self.videos.create_and_poll(model="refuses", prompt="a fox")
        self.assertEqual((video.status, video.error.code), ("failed", "engine_refused"))
        self.assertIn("no foxes", video.error.message)
        with self.assertRaises(openai.APIStatusError) as refused:
            self.videos.download_content(video.id)
        self.assertEqual((refused.exception.status_code, refused.exception.code), (410, "engine_refused"))

    def test_a_cancelled_video(self):
        video = self.videos.create(model="slow", prompt="p")
        until(lambda: self.videos.retrieve(video.id).status == "in_progress")
        path = f"/v1/video/generations/{video.id}/cancel"
        later = threading.Timer(0.2, self.server.call, ["POST", path, {}])
        later.start()
        ended = self.videos.poll(video.id)
        later.join()
        self.assertEqual((ended.status, ended.error.code), ("failed", "cancelled"))

    def test_images(self):
        # Models and options of other services, as clients send them.
        images = self.client.images.generate(
            model="sora-2", prompt="a fox", quality="hd", style="vivid", user="me",
            background="auto", moderation="low",
        )
        self.assertEqual([image.url for image in images.data], [None])
        self.assertEqual(size_of(base64.b64decode(images.data[0].b64_json)), (1024, 1024))
        images = self.client.images.generate(
            prompt="a fox", n=2, size="128x96", response_format="url", output_format="png",
            extra_body={"seed": 7, "num_inference_steps": 2},
        )
        self.assertEqual((images.size, len(images.data)), ("128x96", 2))
        for image in images.data:
            # Without a key: whoever has the link may see the image.
            with urllib.request.urlopen(image.url, timeout=WAIT) as answer:
                self.assertEqual(size_of(answer.read()), (128, 96))
        with self.assertRaises(openai.UnprocessableEntityError) as refused:
            self.client.images.generate(model="refuses", prompt="a fox")
        self.assertEqual(refused.exception.code, "engine_refused")
        self.assertEqual(list(self.videos.list()), [], "images are no videos")

    def test_a_client_that_gives_up_cancels_its_image(self):
        hasty = self.client.with_options(timeout=0.5)
        with self.assertRaises(openai.APITimeoutError):
            hasty.images.generate(model="slow", prompt="p")
        path = "/v1/video/generations?model=slow&limit=1"
        until(lambda: self.server.call("GET", path)["data"][0]["status"] == "CANCELLED")

    def test_refusals(self):
        for call, error, code, param in [
            (lambda: self.videos.create(prompt=" "), openai.BadRequestError, "invalid_value", "prompt"),
            (lambda: self.videos.create(prompt="p", model="sora-9"), openai.BadRequestError,
             "unknown_model", "model"),
            (lambda: self.videos.create(prompt="p", extra_body={"output_path": "/x"}),
             openai.BadRequestError, "unknown_field", "output_path"),
            (lambda: self.videos.create(prompt="p", extra_body={"seed": "seven"}),
             openai.BadRequestError, "invalid_value", "seed"),
            (lambda: self.videos.create(prompt="p", input_reference=("a.png", b"no picture")),
             openai.BadRequestError, "invalid_value", "input_reference"),
            (lambda: self.videos.retrieve(NOBODY), openai.NotFoundError, "task_not_found", None),
        ]:
            with self.assertRaises(error) as refused:
                call()
            self.assertEqual((refused.exception.code, refused.exception.param), (code, param))
            self.assertTrue(refused.exception.body["request_id"])
        stranger = self.client.with_options(api_key="rr_unknown")
        with self.assertRaises(openai.AuthenticationError):
            stranger.videos.list()

    def test_models(self):
        self.assertIn("testcard", [model.id for model in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve("sora-2").id, "testcard")

    def run_example(self, key):
        example = os.path.join(HERE, "../../examples/openai_sdk.py")
        return subprocess.run(
            [sys.executable, "-W", "ignore", example], cwd=self.folder, timeout=WAIT, text=True,
            capture_output=True,
            env={
                **os.environ, "OPENAI_BASE_URL": f"{self.server.url}/v1", "OPENAI_API_KEY": key,
            },
        )

    def test_the_example(self):
        ran = self.run_example(self.server.key)
        self.assertEqual((ran.returncode, ran.stderr), (0, ""), ran.stdout)
        self.assertIn("from an image: completed", ran.stdout)
        for name in ["fox.mp4", "fox.png", "image-0.png", "image-1.png"]:
            self.assertGreater(os.path.getsize(f"{self.folder}/{name}"), 0, name)

    def test_the_example_says_why_it_is_refused(self):
        ran = self.run_example("rr_wrong")
        self.assertEqual((ran.returncode, ran.stdout), (1, ""))
        self.assertRegex(ran.stderr, r"\Aunauthorized: .+\n\Z")


def give_up(*_):
    raise TimeoutError(f"not done within {WAIT} seconds")


def main():
    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    binary = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        Sdk.folder, Sdk.server = folder, Server(binary, folder)
        print(f"openai {openai.__version__}")
        result = None
        try:
            loader = unittest.defaultTestLoader
            loader.testNamePatterns = [f"*{name}*" for name in sys.argv[2:]] or None
            tests = loader.loadTestsFromTestCase(Sdk)
            result = unittest.TextTestRunner(verbosity=2).run(tests)
        finally:
            log = Sdk.server.stop()
            if result is None or not result.wasSuccessful():
                print(log, file=sys.stderr)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
