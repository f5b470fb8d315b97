"""An engine that refuses every request: how a video fails is a part of what clients must read."""

import json
import sys


def say(message):
    print(json.dumps(message), flush=True)


for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "load":
        say({"type": "ready", "protocol": 1, "engine": "refuses", "version": "1"})
    elif message["type"] == "generate":
        say({
            "type": "error", "id": message["id"], "code": "invalid_request",
            "message": "there are no foxes here", "retryable": False,
        })
    elif message["type"] == "exit":
        break
