"""Has the receivers of examples/ told of a result and of a cancelled task, by the real server.

They verify with the libraries of Standard Webhooks. What somebody else sends is refused, and so is
what was sent long ago; after a rotation both secrets are good.

    run.py RAYREEL COMMAND_OF_RECEIVER …
"""

import base64
import hmac
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

WAIT = 120  # seconds for a video on a slow machine
TASKS = "/v1/video/generations"


def until(condition, otherwise):
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit(otherwise)
        time.sleep(0.02)
    return found


def call(url, body=None, headers=None):
    """The answer's JSON, or the status of a refusal."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if text else answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code


def signed(secret, seconds, body):
    """The headers of Standard Webhooks, by hand."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    code = hmac.digest(key, b"evt_1.%d." % seconds + body, "sha256")
    return {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(seconds),
        "webhook-signature": "v1," + base64.b64encode(code).decode(),
    }


class Receiver:
    """An example at work, and what it has printed."""

    def __init__(self, command, secret):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [*command.split(), str(self.port)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RAYREEL_WEBHOOK_SECRET": secret},
        )
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}/"
        until(self.listens, f"{command} does not listen")

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def hears(self, text):
        until(lambda: any(text in line for line in self.lines), f"not heard: {text}; {self.lines}")


def check(server, command):
    secret = call(f"{server}/v1/webhooks/secret")["secret"]
    receiver = Receiver(command, secret)
    try:
        submit = lambda webhook: call(
            f"{server}{TASKS}",
            {"prompt": "p", "size": "64x64", "frames": 5, "steps": 1, "webhook": webhook},
        )["id"]
        done = submit(receiver.url)
        receiver.hears(f"{done} is done: {server}{TASKS}/{done}/content")
        # The old secret, which the receiver still has, is good for a day.
        assert call(f"{server}/v1/webhooks/secret/rotate", b"")["secret"] != secret
        cancelled = submit({"url": receiver.url})
        call(f"{server}{TASKS}/{cancelled}/cancel", b"")
        receiver.hears(f"{cancelled} is CANCELLED: cancelled")
        # Whoever else calls is not believed, nor is what was signed long ago.
        event = json.dumps({"id": "evt_1", "type": "video.failed", "data": {
            "id": "task_forged", "status": "FAILED", "error": {"code": "x"}}}).encode()
        now = int(time.time())
        other = "whsec_" + base64.b64encode(bytes(32)).decode()
        for headers in ({}, signed(other, now, event), signed(secret, now - 600, event)):
            assert call(receiver.url, event, headers) == 400, headers
        assert call(receiver.url, event + b" ", signed(secret, now, event)) == 400
        # What is sent again is answered, so that it is not sent once more, and is not believed twice.
        once = event.replace(b"task_forged", b"task_once")
        for _ in range(3):
            assert call(receiver.url, once, signed(secret, now, once)) == 204
        receiver.hears("task_once is FAILED: x")
        assert sum("task_once" in line for line in receiver.lines) == 1, receiver.lines
        receiver.hears("refused")
        assert not any("task_forged" in line for line in receiver.lines), receiver.lines
        told = call(f"{server}{TASKS}/{done}")["webhook"]
        assert (told["state"], told["attempts"][0]["status"]) == ("delivered", 204), told
    finally:
        receiver.process.kill()
        receiver.process.wait()
    print(f"ok   {command}")


def main():
    binary, commands = os.path.abspath(sys.argv[1]), sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        server = subprocess.Popen(
            [binary, "serve", "--listen", "127.0.0.1:0", "--data", data],
            env={**os.environ, "RAYREEL_OUTBOUND__ALLOW": '["127.0.0.1"]', "RAYREEL_LOG": "warn"},
        )
        try:
            until(lambda: os.path.exists(f"{data}/server.json"), "the server did not start")
            with open(f"{data}/server.json") as file:
                url = json.load(file)["url"].rstrip("/")
            for command in commands:
                check(url, command)
        finally:
            server.terminate()
            server.wait(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
