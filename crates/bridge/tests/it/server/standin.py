"""A stand-in for an engine server: it speaks what a real one speaks, with the real one's faults,
and makes its video by copying a file.

    standin.py DIALECT PORT STATE

What each dialect does is written after the sources of the real servers, which are named at each
class. FAULT names what goes wrong (see `faults`), WORK how many seconds a job takes, or `gate` if it ends
when there is a file `go` in STATE, RESULT the file that every job makes. Into the directory STATE goes what a test wants to know: `pids` of this process
and of the worker that it starts in a session of its own, as these servers do; `submits`, one JSON
object a line; `overlaps`, one line for each job that came while another one was at work. A file `odd`
there says what the server answers when it is asked after its first job: a status and a body, or `hang`.
"""

import base64
import email.parser
import email.policy
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

dialect, port, state = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
faults = set(filter(None, os.environ.get("FAULT", "").split(",")))
work = os.environ.get("WORK", "0.2")
result = Path(os.environ["RESULT"]) if "RESULT" in os.environ else None
started = time.monotonic()


def note(name, line):
    with open(state / name, "a") as file:
        file.write(f"{line}\n")


def once(name):
    """True the first time that this state directory hears of it: faults that a restart mends."""
    try:
        os.close(os.open(state / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Job:
    def __init__(self, id, wish):
        if any(not job.ended for job in jobs.values()):
            note("overlaps", id)
        self.id, self.wish, self.begun = id, wish, time.monotonic()
        self.cancelled = self.stopped = False
        self.deletes = 0
        self.doomed = "doom-once" in faults and once("doomed")
        if "die-once" in faults and once("died"):
            threading.Timer(0.2, lambda: os.kill(os.getpid(), 9)).start()

    @property
    def share(self):
        if work == "gate":
            return 1.0 if (state / "go").exists() else 0.5
        return min((time.monotonic() - self.begun) / float(work), 1.0)

    @property
    def ended(self):
        return self.share >= 1.0 or self.cancelled

    @property
    def failure(self):
        named = [fault.split(":", 1)[1] for fault in faults if fault.startswith("fail:")]
        named += ["CUDA error: unspecified launch failure"] if self.doomed else []
        return named[0] if named and self.ended else None


jobs: dict[str, Job] = {}
sick = False


class Server(BaseHTTPRequestHandler):
    """What they have in common."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        print(format % args, flush=True)

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def say(self, status, body, type="application/json", headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        if getattr(self, "dripping", False):
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
        elif "drip" in faults and len(body) > 10_000:
            for start in range(0, len(body), len(body) // 8):
                self.wfile.write(body[start : start + len(body) // 8])
                self.wfile.flush()
                time.sleep(0.25)
        else:
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def form(self):
        """The fields of a form; of a file its name, type and length."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        fields = {}
        for part in parser.parsebytes(head + self.body()).iter_parts():
            name = part.get_param("name", header="content-disposition")
            content = part.get_payload(decode=True)
            if part.get_filename():
                kind = part.get_content_type()
                fields[name] = [part.get_filename(), kind, len(content)]
            else:
                fields[name] = content.decode()
        return fields

    def submit(self, wish, id):
        """Takes a job; none if a fault forbids it."""
        if "busy-once" in faults and once("busy"):
            self.say(503, self.error("Task queue is full (max 10 tasks)"))
            return None
        if "refuse" in faults:
            self.say(400, self.error("width must be a multiple of 16"))
            return None
        if "key" in faults and self.headers.get("Authorization") != "Bearer secret":
            self.say(401, {"error": "Unauthorized"})
            return None
        if sick or ("sick-once" in faults and once("sick")):
            # Its accelerator is lost to it, for as long as it lives.
            globals()["sick"] = True
            self.say(500, self.error("CUDA error: unspecified launch failure"))
            return None
        note("submits", json.dumps(wish))
        jobs[id] = job = Job(id, wish)
        if "hang-submit-once" in faults and once("hung"):
            time.sleep(60)
        if "drop-submit-once" in faults and once("dropped"):
            self.connection.close()
            self.close_connection = True
            return None
        if "taken-as-500-once" in faults and once("as-500"):
            self.say(500, b"upstream error", "text/plain")
            return None
        if "taken-as-busy-once" in faults and once("as-busy"):
            # A proxy has run out of patience.
            self.say(503, b"no server is available", "text/plain")
            return None
        return job

    def error(self, message):
        return {"detail": message}

    def found(self, id, expired=False):
        """The job, if a poll is to be answered at all."""
        if "hang" in faults:
            time.sleep(60)
        odd = state / "odd"
        if odd.exists() and id == next(iter(jobs), None):
            note("odd-asked", "")
            status, _, body = odd.read_text().partition(" ")
            if status == "hang":
                time.sleep(60)
            self.say(int(status), body.encode())
            return None
        if "not-json" in faults:
            self.say(200, b"<html>the proxy is sorry</html>", "text/html")
            return None
        if "huge" in faults:
            self.say(200, b'{"status": "' + b"x" * (8 << 20) + b'"}')
            return None
        self.dripping = "drip-poll" in faults
        if "redirect" in faults:
            self.say(302, b"", headers=[("Location", "http://127.0.0.1:9/")])
            return None
        job = jobs.get(id)
        if job is None or ("vanish" in faults and job.share > 0.5):
            self.say(404, self.error("not found"))
            return None
        return job

    def send(self, job):
        content = result.read_bytes()
        if "html" in faults:
            content = b"<html>not a video</html>"
        length = len(content)
        if "truncate" in faults or ("truncate-once" in faults and once("truncated")):
            content = content[: length // 2]
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        if "chunked-truncate" in faults:
            # Ends as if it were whole.
            content, length = content[: length // 2], length // 2
        self.send_header("Content-Length", str(length))
        self.end_headers()
        pieces = 20 if "slow" in faults else 1
        size = -(-len(content) // pieces)
        for start in range(0, len(content), size):
            self.wfile.write(content[start : start + size])
            self.wfile.flush()
            if "slow" in faults:
                time.sleep(0.02)
        if len(content) < length:
            self.close_connection = True

    def ready(self):
        lost = sick or any(job.doomed and job.ended for job in jobs.values())
        mended = (state / "mended").exists()
        if "never-ready" in faults or (lost and not mended) or time.monotonic() - started < 0.1:
            # SGLang warms up, vLLM-Omni has no engine yet.
            self.say(503, b"")
        else:
            self.say(200, {"status": "ok"})

    def do_GET(self):
        self.route("GET")

    def do_POST(self):
        self.route("POST")

    def do_DELETE(self):
        self.route("DELETE")

    def route(self, method):
        path = urllib.parse.urlsplit(self.path).path
        for wanted, pattern, answer in self.routes:
            parts, given = pattern.split("/"), path.split("/")
            if wanted == method and len(parts) == len(given):
                pairs = list(zip(parts, given, strict=True))
                if all(part in (have, "{id}") for part, have in pairs):
                    answer(self, *[have for part, have in pairs if part == "{id}"])
                    return
        self.say(404, {"detail": "Not Found"})


class Sglang(Server):
    """sglang 0.5.23, multimodal_gen/runtime/entrypoints/openai/video_api.py and http_server.py."""

    def create(self):
        wish = self.form()
        if not wish.get("prompt"):
            self.say(400, self.error("prompt is required"))
            return
        id = f"{len(jobs):08x}-0000-4000-8000-{os.getpid():012x}"
        if job := self.submit(wish, id):
            outputs = Path("outputs")
            outputs.mkdir(exist_ok=True)
            (outputs / f"{id}.mp4").write_bytes(b"a copy that nobody removes")
            self.say(200, self.shown(job) | {"status": "queued", "progress": 0})

    def shown(self, job):
        shown = {"id": job.id, "object": "video", "model": "m", "created_at": 1, "size": "64x64"}
        if job.failure:
            # No code; the status of the answer is 200.
            return shown | {"status": "failed", "progress": 0, "error": {"message": job.failure}}
        if job.ended:
            return shown | {"status": "completed", "progress": 100}
        progress = 250 if "odd-progress" in faults else min(int(100 * job.share), 99)
        return shown | {"status": "in_progress", "progress": progress}

    def retrieve(self, id):
        if job := self.found(id):
            self.say(200, self.shown(job))

    def delete(self, id):
        # The record goes, the work goes on.
        job = jobs.get(id)
        if job is None:
            self.say(404, self.error("Video not found"))
        else:
            note("deleted", id)
            self.say(200, self.shown(job) | {"status": "deleted"})

    def content(self, id):
        job = jobs.get(id)
        if job is None or not job.ended:
            self.say(404, self.error("Generation is still in-progress"))
        elif "cloud" in faults:
            message = "Video has been uploaded to cloud storage. Please use the cloud URL: https://s"
            self.say(400, self.error(message))
        else:
            self.send(job)

    routes = [
        ("GET", "/health", Server.ready),
        ("POST", "/v1/videos", create),
        ("GET", "/v1/videos/{id}", retrieve),
        ("DELETE", "/v1/videos/{id}", delete),
        ("GET", "/v1/videos/{id}/content", content),
    ]


class VllmOmni(Server):
    """vllm-omni 0.30.0, entrypoints/openai/api_server.py and …/video/generation/helpers.py."""

    def error(self, message):
        # All of vLLM's HTTP errors are of this form.
        return {"error": {"message": message, "type": "Error", "param": None, "code": 400}}

    def create(self):
        wish = self.form()
        if job := self.submit(wish, f"video_gen_{os.getpid():032x}{len(jobs)}"):
            self.say(200, self.shown(job) | {"status": "queued"})

    def shown(self, job):
        shown = {"id": job.id, "object": "video", "model": "m", "prompt": "", "seconds": "4"}
        shown |= {"error": None, "progress": 0, "file_name": None}
        if job.failure:
            code = 400 if "as-400" in faults else 500
            return shown | {"status": "failed", "error": {"code": code, "message": job.failure}}
        if job.ended:
            return shown | {"status": "completed", "progress": 100, "file_name": f"{job.id}.mp4"}
        return shown | {"status": "in_progress"}

    def retrieve(self, id):
        if job := self.found(id):
            shown = self.shown(job)
            # A failed job is an error that carries the job.
            self.say(shown["error"]["code"] if job.failure else 200, shown)

    def delete(self, id):
        job = jobs.get(id)
        if job is None:
            self.say(404, self.error("Video not found"))
            return
        job.deletes += 1
        if "undead" in faults and not job.ended:
            self.say(200, {"id": id, "deleted": True, "object": "video.deleted"})
            return
        if not job.ended and "cancelling" in faults and job.deletes < 3:
            message = "Cancellation in progress. Please try again later."
            self.say(409, self.error(message))
            return
        job.cancelled = True
        note("deleted", id)
        del jobs[id]
        self.say(200, {"id": id, "deleted": True, "object": "video.deleted"})

    def content(self, id):
        job = jobs.get(id)
        if job is None or not job.ended:
            self.say(404, self.error("Generation is still in-progress"))
        else:
            self.send(job)

    routes = [
        ("GET", "/health", Server.ready),
        ("POST", "/v1/videos", create),
        ("GET", "/v1/videos/{id}", retrieve),
        ("DELETE", "/v1/videos/{id}", delete),
        ("GET", "/v1/videos/{id}/content", content),
    ]


class LightX2v(Server):
    """LightX2V, August 2026, lightx2v/server/api/tasks and task_manager.py."""

    def create(self):
        wish = json.loads(self.body())
        if wish["task_id"] in jobs:
            self.say(503, self.error(f"Task ID {wish['task_id']} already exists"))
        elif job := self.submit(wish, wish["task_id"]):
            self.say(200, {"task_id": job.id, "task_status": "pending", "save_result_path": job.id})

    def slashless(self):
        # Another route has this address, for DELETE: the framework does not redirect to ours.
        self.body()
        self.say(405, {"detail": "Method Not Allowed"})

    def status(self, id):
        if job := self.found(id):
            status = "completed" if job.ended else "cancelled" if job.stopped else "processing"
            status = "failed" if job.failure else status
            kind = "OutOfMemoryError" if job.failure and "memory" in job.failure else ""
            shown = {"task_id": id, "status": status, "error": job.failure, "error_type": kind}
            self.say(200, shown | {"save_result_path": f"{id}.mp4"})

    def queue(self):
        note("queue-asked", "")
        at = [job.id for job in jobs.values() if not job.ended and "never-begun" not in faults]
        self.say(200, {"is_processing": bool(at), "current_task": at[0] if at else None})

    def stop(self, id):
        # The work goes on, and the job is completed at its end after all.
        jobs[id].stopped = True
        self.say(200, {"stop_status": "success", "reason": "Task stopped successfully."})

    def content(self, id):
        job = jobs.get(id)
        if job is None or not job.ended:
            self.say(404, self.error("Task not completed"))
        else:
            self.send(job)

    routes = [
        ("GET", "/health", Server.ready),
        ("POST", "/v1/tasks/video", slashless),
        ("POST", "/v1/tasks/video/", create),
        ("GET", "/v1/tasks/queue/status", queue),
        ("GET", "/v1/tasks/{id}/status", status),
        ("DELETE", "/v1/tasks/{id}", stop),
        ("GET", "/v1/tasks/{id}/result", content),
    ]


class SdServer(Server):
    """stable-diffusion.cpp, examples/server/async_jobs.cpp and routes_sdcpp.cpp."""

    def error(self, message):
        return {"error": message}

    def create(self, kind):
        wish = json.loads(self.body()) | {"kind": kind}
        if job := self.submit(wish, f"job_{int(time.time()):x}_{len(jobs):08d}"):
            shown = {"id": job.id, "kind": kind, "status": "queued", "created": 1}
            self.say(202, shown | {"poll_url": f"/sdcpp/v1/jobs/{job.id}"})

    def video(self):
        self.create("vid_gen")

    def image(self):
        self.create("img_gen")

    def retrieve(self, id):
        job = self.found(id)
        if job is None:
            return
        shown = {"id": id, "kind": job.wish["kind"], "queue_position": 0}
        shown |= {"status": "generating", "result": None, "error": None}
        if job.failure:
            error = {"code": "generation_failed", "message": job.failure}
            shown |= {"status": "failed", "error": error}
        elif job.ended:
            content = base64.b64encode(result.read_bytes()).decode()
            made = {"output_format": job.wish["output_format"]}
            if job.wish["kind"] == "img_gen":
                made["images"] = [{"index": 0, "b64_json": content}]
            else:
                made |= {"mime_type": "video/x-msvideo", "b64_json": content}
            shown |= {"status": "completed", "result": made}
        self.say(200, shown)

    def cancel(self, id):
        message = "job is currently generating and cannot be interrupted yet"
        self.say(409, self.error(message))

    routes = [
        ("GET", "/sdcpp/v1/capabilities", Server.ready),
        ("POST", "/sdcpp/v1/vid_gen", video),
        ("POST", "/sdcpp/v1/img_gen", image),
        ("GET", "/sdcpp/v1/jobs/{id}", retrieve),
        ("POST", "/sdcpp/v1/jobs/{id}/cancel", cancel),
    ]


if __name__ == "__main__":
    note("pids", os.getpid())
    if "late" in faults:
        # Imports and weights come first.
        note("port", port)
        while not (state / "listen").exists():
            time.sleep(0.02)
    if "exit-loading" in faults or ("taken-once" in faults and once("taken")):
        print("loading checkpoint shards: 50%", flush=True)
        taken = "taken-once" in faults
        print("[Errno 98] address already in use" if taken else "no CUDA device", flush=True)
        sys.exit(3)
    # Their workers are processes of their own, and outlive a parent that is killed.
    forever = "import time; time.sleep(60)"
    if "headless" in faults:
        # A process whose first thread has ended looks dead, and is not.
        rest = "threading.Thread(target=time.sleep, args=(60,)).start()"
        end = "ctypes.CDLL(None).pthread_exit(None)"
        forever = f"import ctypes, threading, time; {rest}; {end}"
    if "orphan" in faults:
        # Ends after its parent, when there is nobody who waits for it but who adopts.
        subprocess.run(["sh", "-c", f"(sleep 0.2; echo $$) & echo $! >> {state}/orphans"])
    worker = subprocess.Popen([sys.executable, "-c", forever], start_new_session=True)
    note("pids", worker.pid)
    servers = {"sglang": Sglang, "vllm-omni": VllmOmni, "lightx2v": LightX2v, "sd-server": SdServer}
    server = ThreadingHTTPServer(("127.0.0.1", port), servers[dialect])
    server.daemon_threads = True
    server.serve_forever()
