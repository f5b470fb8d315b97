"""Puts ids that exist into some of schemathesis's requests: else all it would see is 404.

`RAYREEL_SCHEMA_IDS` holds them as JSON: tasks that have succeeded, tasks that wait, files, keys. Each
operation that was answered with success is written into the file `RAYREEL_SCHEMA_ANSWERED`, once for
each time.
"""

import json
import os
import zlib

import schemathesis

IDS = json.loads(os.environ["RAYREEL_SCHEMA_IDS"])


def known(path, method):
    """What may stand for `{id}` here. Whatever is deleted is deleted from what is kept for that."""
    if path.startswith("/v1/admin/keys"):
        return IDS["keys"]
    if path.startswith("/v1/files"):
        return IDS["spare_files"] if method == "delete" else IDS["files"]
    if method == "delete" or path.endswith("/cancel"):
        return IDS["waiting"]
    # The events of a task that waits go on for ever, and it has nothing to show.
    return IDS["done"] + IDS["waiting"] if path.endswith("{id}") else IDS["done"]


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    made_up = (path_parameters or {}).get("id")
    if made_up is None:
        return path_parameters
    ids = known(context.operation.path, context.operation.method.lower())
    # By what was generated, so that the same run asks the same again. Every third stays made up, but
    # for what was learned from answers: the events of a task that waits would be awaited for ever.
    chance = zlib.crc32(repr(made_up).encode("utf-8", "surrogatepass"))
    learned = context.operation.path.endswith("/events") and str(made_up).startswith("task_")
    if ids and (chance % 3 or learned):
        return {**path_parameters, "id": ids[chance // 3 % len(ids)]}
    return path_parameters


@schemathesis.hook
def after_call(context, case, response):
    if 200 <= response.status_code < 300:
        with open(os.environ["RAYREEL_SCHEMA_ANSWERED"], "a") as file:
            file.write(f"{case.operation.label}\n")
