"""Plays a generated MP4 in Chromium and in Firefox, from rayreel's own server, and checks pixels.

A page is served beside the API (through a small forwarding server, since a page of another origin
may not read the video's pixels). Its script plays the video, draws a frame onto a canvas, and posts
what it saw. So no driver is needed, and every browser that can open a page can be tested.
"""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

WAIT = 120  # seconds for a browser to start, load and play on a slow machine

PAGE = """<!doctype html><meta charset="utf-8"><title>play</title>
<video id="v" muted playsinline src="/content"></video>
<script>
const v = document.getElementById('v');
const report = (data) => fetch('/report', {method: 'POST', body: JSON.stringify(data)});
v.addEventListener('error', () => report({error: 'code ' + v.error.code + ': ' + v.error.message}));
v.addEventListener('ended', () => {
  const c = document.createElement('canvas');
  c.width = v.videoWidth; c.height = v.videoHeight;
  const g = c.getContext('2d');
  g.drawImage(v, 0, 0);
  const data = g.getImageData(0, 0, c.width, c.height).data;
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4 * 97) colours.add(data[i] >> 5 << 10 | data[i + 1] >> 5 << 5 | data[i + 2] >> 5);
  report({width: v.videoWidth, height: v.videoHeight, duration: v.duration, at: v.currentTime, colours: colours.size});
});
v.play().catch((e) => report({error: String(e)}));
</script>"""


def serve(content_url, reports):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path == "/":
                self.answer(200, "text/html; charset=utf-8", PAGE.encode())
            elif self.path == "/content":
                request = urllib.request.Request(content_url)
                if "Range" in self.headers:
                    request.add_header("Range", self.headers["Range"])
                with urllib.request.urlopen(request) as upstream:
                    body = upstream.read()
                    extra = {
                        name: upstream.headers[name]
                        for name in ("Content-Range", "Accept-Ranges")
                        if upstream.headers[name]
                    }
                    self.answer(upstream.status, upstream.headers["Content-Type"], body, extra)
            else:
                self.answer(404, "text/plain", b"")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(204, "text/plain", b"")
            reports.append(json.loads(body))
            self.server.reported.set()

        def answer(self, status, kind, body, extra=None):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a browser may stop reading when it has enough

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.reported = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def until(condition, otherwise):
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(otherwise)
        time.sleep(0.02)


def browsers(profile):
    chromium = shutil.which("chromium")
    if chromium:
        yield "Chromium", [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}/chromium",
            "--remote-debugging-port=0",
        ]
    firefox = shutil.which("firefox-esr") or shutil.which("firefox")
    if firefox:
        os.makedirs(f"{profile}/firefox", exist_ok=True)
        with open(f"{profile}/firefox/user.js", "w") as prefs:
            prefs.write('user_pref("media.autoplay.default", 0);\n')
            prefs.write('user_pref("datareporting.policy.dataSubmissionEnabled", false);\n')
            prefs.write('user_pref("app.update.enabled", false);\n')
        yield "Firefox", [firefox, "--headless", "--no-remote", "--profile", f"{profile}/firefox"]


def main():
    binary = os.path.abspath(sys.argv[1])
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [binary, "serve", "--listen", "127.0.0.1:0", "--data", f"{folder}/data"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: os.path.exists(f"{folder}/data/server.json"), "the server did not start")
            made = subprocess.run(
                [binary, "--data", f"{folder}/data", "--json", "generate", "plays in browsers 播放",
                 "--size", "320x240", "--frames", "17", "-o", f"{folder}/a.mp4"],
                check=True, capture_output=True, timeout=WAIT,
            )
            task = json.loads(made.stdout.splitlines()[-1])
            url = task["urls"]["content"]
            for name, command in browsers(folder):
                reports = []
                page = serve(url, reports)
                browser = subprocess.Popen(
                    [*command, f"http://127.0.0.1:{page.server_port}/"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                    env={**os.environ, "HOME": folder, "MOZ_DISABLE_CONTENT_SANDBOX": "1"},
                )
                page.reported.wait(WAIT)
                os.killpg(browser.pid, signal.SIGKILL)
                browser.wait()
                page.shutdown()
                seen = reports[0] if reports else {"error": f"nothing within {WAIT} s"}
                good = (
                    (seen.get("width"), seen.get("height")) == (320, 240)
                    and abs(seen["duration"] - 17 / 16) < 0.1
                    and seen["colours"] > 8
                )
                print(f"{'ok  ' if good else 'FAIL'} {name}: {seen}")
                failures += not good
        finally:
            server.terminate()
            server.wait(30)
    print(f"{2 - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
