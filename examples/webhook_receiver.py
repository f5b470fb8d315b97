"""Receives rayreel's webhooks, and believes only those that are signed.

    pip install standardwebhooks
    export RAYREEL_WEBHOOK_SECRET=$(curl -s localhost:8088/v1/webhooks/secret | jq -r .secret)
    python webhook_receiver.py 8089

Then submit with `"webhook": "https://…"`, an address that leads here. For one on this machine the
server must be told that it may call it: RAYREEL_OUTBOUND__ALLOW='["127.0.0.1"]'.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

MAX_BODY = 1 << 20
webhook = Webhook(os.environ["RAYREEL_WEBHOOK_SECRET"])
# An event may come more than once, from the server or from somebody who has heard it: its id, which
# is signed, is always the same. Five minutes later the library refuses it. Yours belong into a database.
seen = set()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            return self.answer(413)
        # The signature is that of the bytes as they came: verify first, then read.
        body = self.rfile.read(length)
        try:
            webhook.verify(body, dict(self.headers.items()))
        except WebhookVerificationError as error:
            print(f"refused: {error}", flush=True)
            return self.answer(400)
        if self.headers["webhook-id"] not in seen:
            handle(json.loads(body))
            seen.add(self.headers["webhook-id"])
        # Any status from 200 to 299, and soon: what takes long is done after the answer.
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def handle(event):
    task = event["data"]
    if event["type"] == "video.completed":
        print(f"{task['id']} is done: {task['result']['url']}", flush=True)
    else:
        print(f"{task['id']} is {task['status']}: {task['error']['code']}", flush=True)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
