"""Opens /docs in Chromium, and checks what its script has drawn: every operation of the document.

The page may load nothing from elsewhere, so there is no driver in it: Chromium prints its DOM.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

WAIT = 120  # seconds for a browser to start on a slow machine


def dom(url, folder):
    chromium = shutil.which("chromium")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder}/chromium", "--virtual-time-budget=20000", "--dump-dom",
        "--enable-logging=stderr", url,
    ]
    ran = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=WAIT,
        env={**os.environ, "HOME": folder},
    )
    told = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return ran.stdout, told


def main():
    binary = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [binary, "serve", "--listen", "127.0.0.1:0", "--data", f"{folder}/data"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + WAIT
            while not os.path.exists(f"{folder}/data/server.json"):
                if time.monotonic() > deadline:
                    sys.exit("the server did not start")
                time.sleep(0.02)
            with open(f"{folder}/data/server.json") as file:
                url = json.load(file)["url"].rstrip("/")
            with urllib.request.urlopen(f"{url}/openapi.json") as answer:
                document = json.load(answer)
            items = [*document["paths"].values(), *document["webhooks"].values()]
            wanted = {operation["operationId"] for item in items for operation in item.values()}
            page, told = dom(f"{url}/docs", folder)
        finally:
            server.terminate()
            server.wait(30)
    drawn = set(re.findall(r'<article id="([a-z_]+)"', page))
    linked = set(re.findall(r'<a href="#([a-z_]+)"', page))
    commands = page.count("curl ")
    faults = []
    if drawn != wanted or not wanted <= linked:
        faults.append(f"drawn {len(drawn)}, linked {len(linked & wanted)} of {len(wanted)} operations")
    if commands < len(wanted) - len(document["webhooks"]):
        faults.append(f"{commands} commands for {len(wanted)} operations")
    codes = set(re.findall(r"<li><code>([a-z_]+)</code> \(\d{3}\)", page))
    if len(codes) < 40:
        faults.append(f"{len(codes)} error codes")
    if "webhook-signature" not in page or "evt_" not in page:
        faults.append("webhooks are not shown")
    if "[object " in page or "undefined" in page:
        faults.append("something was drawn that is no text")
    if told:
        faults.append(f"the console says: {told}")
    print(f"{'FAIL' if faults else 'ok  '} Chromium: {faults or f'{len(drawn)} operations'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
