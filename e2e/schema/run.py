"""Runs schemathesis over the server's own OpenAPI document, against the server itself.

What it finds is a fault of the server or of its document: a status 5xx, a status or a media type that
is not documented, an answer that breaks its schema, a header that is missing, a request that the
schema allows and the server refuses, and the other way round. Every operation must have been tested,
and have answered with success. Before that, the document's own examples are checked.

    run.py RAYREEL SCHEMATHESIS [SEED]

Without a seed it asks always the same.
"""

import collections
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import examples

WAIT = 120  # seconds for a video on a slow machine
KEY = "schema-test-admin-key-of-the-operator"
TASKS = "/v1/video/generations"
# So much is generated for each operation.
MAX_EXAMPLES = "8"
# What the document's examples ask for is not made again: here everything is small, and done at once.
CONFIG = """
default_model = "testcard"
max_wait_seconds = 30
[models.testcard]
settings = { step_ms = 0 }
limits = { max_side = 1024, max_frames = 5, max_steps = 20 }
defaults = { size = "64x64", frames = 5, steps = 1 }
# Its tasks wait for ever.
[pools.nobody]
max = 0
# What is drained is not what does the tasks.
[pools.h200]
max = 0
[models.waits]
engine = "testcard"
pool = "nobody"
"""


class Server:
    def __init__(self, binary, data, config):
        self.data = data
        with open(f"{data}.toml", "w") as file:
            file.write(config)
        if os.path.exists(f"{data}/server.json"):
            os.remove(f"{data}/server.json")
        self.process = subprocess.Popen(
            [binary, "--config", f"{data}.toml", "serve", "--listen", "127.0.0.1:0", "--data", data],
            env={**os.environ, "RAYREEL_ADMIN_KEY": KEY, "RAYREEL_LOG": "warn"},
            stdout=subprocess.DEVNULL,
        )
        until(lambda: os.path.exists(f"{data}/server.json"), "the server did not start")
        with open(f"{data}/server.json") as file:
            self.url = json.load(file)["url"].rstrip("/")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def send(self, method, path, kind=None, body=None):
        """Gives the status and the answer, whatever it is."""
        headers = {"Authorization": f"Bearer {KEY}", **({"Content-Type": kind} if kind else {})}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def call(self, method, path, body=None):
        kind, data = examples.encoded("application/json", body) if body else (None, None)
        status, answer = self.send(method, path, kind, data)
        if not 200 <= status < 300:
            sys.exit(f"{method} {path}: {status} {answer}")
        return answer

    def upload(self):
        kind, body = examples.encoded("multipart/form-data", {"file": "@a.png"})
        return self.send("POST", "/v1/files", kind, body)[1]["id"]


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
    submit = lambda: server.call("POST", TASKS, {"prompt": "p", "model": "waits"})["id"]
    return [submit() for _ in range(40)]


def register(server):
    """The worker and the pool of the document's examples; it takes no task."""
    worker = {"worker": "gpu-1", "pool": "h200", "version": "1"}
    server.call("POST", "/v1/worker/register", worker)


def main():
    binary, schemathesis = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    which = ["--seed", sys.argv[3]] if len(sys.argv) > 3 else ["--generation-deterministic"]
    here = os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        with Server(binary, data, "") as server:
            ids = made(server)
            known = lambda path: path.replace("{id}", ids["done"][0])
            send = lambda method, path, *body: server.send(method, known(path), *body)
            wrong = examples.check(server.call("GET", "/openapi.json"), send)
            if wrong:
                sys.exit("\n".join(wrong))
        with Server(binary, data, CONFIG) as server:
            ids["waiting"] = waiting(server)
            register(server)
            report, answered = f"{folder}/report.json", f"{folder}/answered"
            ran = subprocess.run(
                [schemathesis, "--config-file", f"{here}/schemathesis.toml", "run",
                 f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
                 "--max-examples", MAX_EXAMPLES, "--report-json-path", report, *which],
                cwd=folder,
                env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": here,
                     "RAYREEL_SCHEMA_IDS": json.dumps(ids), "RAYREEL_SCHEMA_ANSWERED": answered},
            )
            if server.process.poll() is not None:
                sys.exit("the server is gone")
        return ran.returncode or unreached(report, answered)


def unreached(report, answered):
    """Fails if an operation was never tested, or never answered with success."""
    with open(report) as file:
        report = json.load(file)
    operations = report["operations"]
    if operations["tested"] != operations["total"] or not report["complete"]:
        print(f"not every operation was tested: {operations}")
        return 1
    with open(answered) as file:
        answered = collections.Counter(file.read().splitlines())
    missed = sorted(set(report["valid_rates"]) - set(answered))
    if missed or len(answered) != operations["total"]:
        print(f"never answered with success: {missed or answered}")
        return 1
    print(f"{operations['total']} operations, each with success: {answered.total()} times in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
