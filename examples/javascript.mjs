// A video from JavaScript, with nothing but Node 18 or newer: submitted, followed, downloaded.
//
//   rayreel serve                                       # in another terminal
//   node examples/javascript.mjs "a red fox running through snow" fox.mp4
//
// RAYREEL_SERVER and RAYREEL_TOKEN name another server, and a key for it.

import { createHash, randomUUID } from "node:crypto";
import { createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";

const server = process.env.RAYREEL_SERVER ?? "http://127.0.0.1:8088";
const key = process.env.RAYREEL_TOKEN;
const [prompt, file] = process.argv.slice(2);

// The response; asks again if the server is busy or away. A refusal is thrown with its message.
async function call(path, { headers, ...options } = {}) {
  for (let tries = 1; ; tries++) {
    let response, pause = 0.2 * 2 ** tries;
    try {
      const credentials = key ? { authorization: `Bearer ${key}` } : {};
      response = await fetch(server + path, { ...options, headers: { ...credentials, ...headers } });
    } catch (error) {
      if (tries > 4) throw new Error(`${server} does not answer: ${error.cause?.message ?? error}`);
    }
    if (response?.ok) return response;
    if (response) {
      const text = await response.text();
      pause = Number(response.headers.get("retry-after") ?? pause);
      if (![429, 503].includes(response.status) || tries > 4 || pause > 30) {
        let error;
        try { ({ error } = JSON.parse(text)); } catch { /* not an answer of rayreel's */ }
        throw new Error(error ? `${error.code}: ${error.message}` : `status ${response.status}`);
      }
    }
    await sleep(pause * 1000);
  }
}

// The events of a task until its end; after a lost connection it goes on behind the last one.
async function* events(path) {
  for (let last = ""; ; await sleep(1000)) {
    const response = await call(path, { headers: last ? { "last-event-id": last } : {} });
    if (response.status === 204) return; // Nothing more to tell.
    const decoder = new TextDecoder();
    let text = "";
    try {
      for await (const bytes of response.body) {
        text += decoder.decode(bytes, { stream: true });
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const field = (name) => block.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
          if (!field("data")) continue; // A sign of life.
          last = field("id") ?? last;
          const event = JSON.parse(field("data"));
          yield event;
          if (!["QUEUED", "RUNNING"].includes(event.status)) return;
        }
      }
    } catch (error) {
      console.error(`the connection broke (${error.cause?.message ?? error.message}), again`);
    }
  }
}

async function generate() {
  const submitted = await call("/v1/video/generations", {
    method: "POST",
    // With this key a repetition makes no second task.
    headers: { "content-type": "application/json", "idempotency-key": randomUUID() },
    body: JSON.stringify({ prompt, size: "640x352", seconds: 2, steps: 10 }),
  });
  const { id } = await submitted.json();
  const path = `/v1/video/generations/${id}`;
  for await (const { status, progress, error } of events(`${path}/events`)) {
    console.error(`${id} ${status} ${progress} %`);
    if (error) throw new Error(`${error.code}: ${error.message}`);
  }
  const { result } = await (await call(path)).json();
  await download(`${path}/content`, result.sha256);
  console.log(`${file}: ${result.bytes} bytes`);
}

// The file has its name only when it is whole.
async function download(path, sha256) {
  const part = `${file}.part`;
  const hash = createHash("sha256");
  const { body } = await call(path);
  try {
    await pipeline(Readable.fromWeb(body), async function* (pieces) {
      for await (const piece of pieces) {
        hash.update(piece);
        yield piece;
      }
    }, createWriteStream(part));
    if (hash.digest("hex") !== sha256) throw new Error("the file that arrived is another one");
    await rename(part, file);
  } finally {
    await rm(part, { force: true });
  }
}

if (!file) {
  console.error("usage: javascript.mjs PROMPT FILE");
  process.exit(2);
}
generate().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
