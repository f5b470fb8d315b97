"""Holds every example of the OpenAPI document against its schema, and sends those of requests.

Examples are what people copy: a request that stands in the document is accepted as it stands there.
"""

import base64
import json

import openapi_spec_validator
from jsonschema import Draft202012Validator

BOUNDARY = "an-example"
# A red pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4YSQHAALeARlA67ihAAAAAElFTkSu"
    "QmCC"
)


def check(document, send):
    """Says what is wrong with the document, and with its examples. `send(method, path, type, body)`
    sends a request and gives its status and its answer."""
    openapi_spec_validator.validate(document)
    wrong, sent, answers = [], 0, 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = f"{method.upper()} {path}"
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                for example in examples(content):
                    # Of a form, a file is named as for curl.
                    wrong += faults(document, content["schema"], example, f"{name}, request")
                    status, answer = send(method.upper(), path, *encoded(media_type, example))
                    sent += 1
                    if not 200 <= status < 300:
                        wrong.append(f"{name}, request {example}: {status} {answer}")
                if not examples(content):
                    wrong.append(f"{name}: {media_type} has no example")
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json", {})
                if status[0] != "2" or "schema" not in content:
                    continue
                for example in examples(content):
                    wrong += faults(document, content["schema"], example, f"{name}, {status}")
                    answers += 1
                if not examples(content):
                    wrong.append(f"{name}: {status} has no example")
    for name, item in document["webhooks"].items():
        for operation in item.values():
            content = operation["requestBody"]["content"]["application/json"]
            if not examples(content):
                wrong.append(f"webhook {name} has no example")
            for example in examples(content):
                wrong += faults(document, content["schema"], example, f"webhook {name}")
                answers += 1
    for name, schema in document["components"]["schemas"].items():
        for field, of in schema.get("properties", {}).items():
            if "example" in of:
                wrong += faults(document, of, of["example"], f"{name}.{field}")
    if not wrong:
        print(f"the document is valid; {sent} requests were accepted, {answers} answers fit")
    return wrong


def examples(content):
    several = [example["value"] for example in content.get("examples", {}).values()]
    return several + ([content["example"]] if "example" in content else [])


def faults(document, schema, example, place):
    # References lead into the document: it is the schema, and this a part of it.
    whole = {**schema, "components": document["components"]}
    errors = Draft202012Validator(whole).iter_errors(example)
    return [f"{place}, example: {error.json_path}: {error.message}" for error in errors]


def encoded(media_type, example):
    """An example as a request has it: its type and its bytes."""
    if media_type == "application/json":
        return media_type, json.dumps(example).encode()
    body = b""
    for name, value in example.items():
        fields = {f"{name}[{key}]": of for key, of in value.items()} \
            if isinstance(value, dict) else {name: value}
        for field, of in fields.items():
            body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"'.encode()
            if str(of).startswith("@"):
                body += f'; filename="{of[1:]}"\r\nContent-Type: image/png\r\n\r\n'.encode() + PNG
            else:
                body += f"\r\n\r\n{of}".encode()
            body += b"\r\n"
    return f"multipart/form-data; boundary={BOUNDARY}", body + f"--{BOUNDARY}--\r\n".encode()
