"""Runs schemathesis over the server's own OpenAPI document, against the server itself.

What it finds is a fault of the server or of its document: a status 5xx, a status or a media type that
is not documented, an answer that breaks its schema, a header that is missing, a request that the
schema allows and the server refuses, and the other way round. Every operation must have been tested.

    run.py RAYREEL SCHEMATHESIS [MAX_EXAMPLES]
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

WAIT = 120  # seconds for a video on a slow machine
KEY = "schema-test-admin-key-of-the-operator"
TASKS = "/v1/video/generations"
# A red pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4YSQHAALeARlA67ihAAAAAElFTkSu"
    "QmCC"
)


class Server:
    def __init__(self, binary, data, **settings):
        self.data = data
        if os.path.exists(f"{data}/server.json"):
            os.remove(f"{data}/server.json")
        self.process = subprocess.Popen(
            [binary, "serve", "--listen", "127.0.0.1:0", "--data", data],
            env={**os.environ, "RAYREEL_ADMIN_KEY": KEY, "RAYREEL_LOG": "warn", **settings},
        )
        until(lambda: os.path.exists(f"{data}/server.json"), "the server did not start")
        with open(f"{data}/server.json") as file:
            self.url = json.load(file)["url"].rstrip("/")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def call(self, method, path, body=None, kind="application/json"):
        data = json.dumps(body).encode() if kind == "application/json" and body is not None else body
        headers = {"Authorization": f"Bearer {KEY}", **({"Content-Type": kind} if data else {})}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def upload(self):
        body = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\n" + PNG + b"\r\n--b--\r\n"
        )
        return self.call("POST", "/v1/files", body, "multipart/form-data; boundary=b")["id"]


def until(condition, otherwise):
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(otherwise)
        time.sleep(0.02)


def made(server):
    """Ids of things that exist. The tasks have ended, with a video and somebody to tell."""
    small = {"prompt": "p", "size": "64x64", "frames": 5, "steps": 1}
    asked = {**small, "webhook": "https://hooks.example.com/"}
    done = [server.call("POST", TASKS, asked)["id"] for _ in range(2)]
    done.append(server.call("POST", TASKS, {**small, "format": "png", "frames": 1})["id"])
    ended = lambda id: server.call("GET", f"{TASKS}/{id}")["status"] == "SUCCEEDED"
    until(lambda: all(ended(id) for id in done), "the tasks did not succeed")
    return {
        "done": done,
        "files": [server.upload()],
        "spare_files": [server.upload() for _ in range(8)],
        "keys": [server.call("POST", "/v1/admin/keys", {"name": "spare"})["id"] for _ in range(4)],
    }


def waiting(server):
    """Tasks that nobody will do."""
    submit = lambda: server.call("POST", TASKS, {"prompt": "p"})["id"]
    return [submit() for _ in range(40)]


def main():
    binary, schemathesis = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    examples = sys.argv[3] if len(sys.argv) > 3 else "40"
    here = os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        with Server(binary, data) as server:
            ids = made(server)
        # No worker from here on: what is submitted waits, and the queue fills up.
        settings = {
            "RAYREEL_POOLS__LOCAL__MAX": "0",
            "RAYREEL_MAX_QUEUED": "200",
            # The model of the document's example.
            "RAYREEL_MODELS__TESTCARD__ALIASES": '["t2v-A14B"]',
        }
        with Server(binary, data, **settings) as server:
            ids["waiting"] = waiting(server)
            report = f"{folder}/report.json"
            ran = subprocess.run(
                [schemathesis, "--config-file", f"{here}/schemathesis.toml", "run",
                 f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
                 "--max-examples", examples, "--report-json-path", report],
                cwd=folder,
                env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": here,
                     "RAYREEL_SCHEMA_IDS": json.dumps(ids)},
            )
            if server.process.poll() is not None:
                sys.exit("the server is gone")
        return ran.returncode or unreached(report)


def unreached(path):
    """Fails if an operation was never tested, or never with success."""
    with open(path) as file:
        report = json.load(file)
    operations = report["operations"]
    if operations["tested"] != operations["total"] or not report["complete"]:
        print(f"not every operation was tested: {operations}")
        return 1
    accepted = {
        name: sum(phase["accepted"] for phase in phases.values())
        for name, phases in report["valid_rates"].items()
    }
    missed = [name for name, count in accepted.items() if count == 0]
    if missed or len(accepted) != operations["total"]:
        print(f"never answered with success: {missed or accepted}")
        return 1
    print(f"{operations['total']} operations, each with success: {sum(accepted.values())} times in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
