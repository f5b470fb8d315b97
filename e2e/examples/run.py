"""The clients of examples/ against the real server: each makes a video, says what the server says
when it refuses, and goes on when the server has died and come back.

    run.py RAYREEL OPENAI_EXAMPLE COMMAND …

A COMMAND gets a prompt and a file; OPENAI_EXAMPLE is openai_sdk.mjs where its package is.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
WAIT = 120  # seconds for anything on a slow machine
REFUSES = f"{HERE}/../sdk/refuses.py"
MODELS = {
    "testcard": "[models.testcard]\nsettings = { step_ms = 1 }\n",
    "slow": '[models.slow]\nengine = "testcard"\nsettings = { step_ms = 300 }\n',
    "refuses": f"[models.refuses]\ncommand = {json.dumps([sys.executable, REFUSES])}\n",
}


def until(condition, otherwise):
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.02)
    return found


class Server:
    """A server whose requests go to this model, and a key for it."""

    def __init__(self, binary, folder, model):
        self.command = [binary, "--config", f"{folder}/{model}.toml", "serve",
                        "--data", f"{folder}/{model}"]
        self.info = f"{folder}/{model}/server.json"
        with open(f"{folder}/{model}.toml", "w") as file:
            file.write(f'default_model = "{model}"\n{MODELS[model]}')
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.log = open(f"{folder}/{model}.log", "w+")
        self.start()
        body = json.dumps({"name": "examples"}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/admin/keys", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            self.key = json.load(answer)["key"]

    def start(self):
        self.process = subprocess.Popen(
            [*self.command, "--listen", self.address], stdout=self.log, stderr=self.log)
        until(self.answers, "the server does not start")

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=WAIT) as answer:
                return answer.status == 200
        except OSError:
            if self.process.poll() is not None:
                raise RuntimeError("the server has ended") from None
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.seek(0)
        text = self.log.read()
        self.log.close()
        return text


class Ran:
    """An example at work."""

    def __init__(self, command, server, folder, key=None):
        self.file = f"{folder}/fox.mp4"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAYREEL_", "OPENAI_"))}
        key = key or server.key
        env |= {"RAYREEL_SERVER": server.url, "RAYREEL_TOKEN": key}
        env |= {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": key}
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = ""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.said += line

    def hears(self, text):
        until(lambda: text in self.said or self.process.poll() is not None, f"no {text}")
        assert text in self.said, self.said

    def end(self):
        """Its exit status and standard output."""
        out = self.process.stdout.read()
        status = self.process.wait(WAIT)
        self.reader.join()
        return status, out


class Examples(unittest.TestCase):
    binary, openai, commands, folder, servers = None, None, [], None, {}

    def server(self, model):
        if model not in self.servers:
            self.servers[model] = Server(self.binary, self.folder, model)
        return self.servers[model]

    def each(self, check):
        """Every example that takes a prompt and a file, each in a folder of its own."""
        for command in self.commands:
            with self.subTest(command), tempfile.TemporaryDirectory() as folder:
                check([*command.split(), "a \"red\" fox's $HOME", "fox.mp4"], folder)

    def refused(self, command, folder, server, texts, key=None):
        ran = Ran(command, server, folder, key)
        status, out = ran.end()
        self.assertEqual((status, out), (1, ""), ran.said)
        for text in texts:
            self.assertIn(text, ran.said)
        self.assertNotIn("    at ", ran.said, "no stack trace")
        self.assertEqual(os.listdir(folder), [], "no half file stays behind")

    def succeeded(self, ran, folder):
        status, out = ran.end()
        self.assertEqual(status, 0, ran.said)
        self.assertIn("SUCCEEDED 100 %", ran.said)
        self.assertIn(f"fox.mp4: {os.path.getsize(ran.file)} bytes", out)
        with open(ran.file, "rb") as file:
            self.assertEqual(file.read(8)[4:], b"ftyp")
        self.assertEqual(os.listdir(folder), ["fox.mp4"])

    def test_from_a_prompt_to_a_file(self):
        server = self.server("testcard")
        self.each(lambda command, folder: self.succeeded(Ran(command, server, folder), folder))

    def test_a_key_that_is_wrong(self):
        server, texts = self.server("testcard"), ["unauthorized"]
        self.each(lambda command, folder: self.refused(command, folder, server, texts, "rr_wrong"))

    def test_a_task_that_fails(self):
        server, texts = self.server("refuses"), ["engine_refused", "there are no foxes here"]
        self.each(lambda command, folder: self.refused(command, folder, server, texts))

    def test_what_is_missing(self):
        def check(command, folder):
            ran = Ran(command[:-1], self.server("testcard"), folder)
            self.assertEqual(ran.end(), (2, ""))
            self.assertIn("usage: ", ran.said)

        self.each(check)

    def test_a_server_that_dies_and_comes_back(self):
        server = self.server("slow")

        def check(command, folder):
            ran = Ran(command, server, folder)
            ran.hears("RUNNING")
            server.kill()
            server.start()
            self.succeeded(ran, folder)

        self.each(check)

    def test_the_openai_sdk_in_javascript(self):
        command = ["node", self.openai]
        with tempfile.TemporaryDirectory() as folder:
            ran = Ran(command, self.server("testcard"), folder)
            status, out = ran.end()
            self.assertEqual((status, ran.said), (0, ""), out)
            self.assertIn("completed 640x352", out)
            self.assertEqual(sorted(os.listdir(folder)), ["fox.mp4", "fox.png", "image.png"])
        with tempfile.TemporaryDirectory() as folder:
            texts = ["unauthorized", "401"]
            self.refused(command, folder, self.server("testcard"), texts, "rr_wrong")
            texts = ["engine_refused", "there are no foxes here"]
            self.refused(command, folder, self.server("refuses"), texts)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    Examples.binary, Examples.openai = map(os.path.abspath, sys.argv[1:3])
    Examples.commands = sys.argv[3:]
    result = None
    with tempfile.TemporaryDirectory() as Examples.folder:
        try:
            tests = unittest.defaultTestLoader.loadTestsFromTestCase(Examples)
            result = unittest.TextTestRunner(verbosity=2).run(tests)
        finally:
            for server in Examples.servers.values():
                log = server.stop()
                if result is None or not result.wasSuccessful():
                    print(log, file=sys.stderr)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
