// A video and an image with OpenAI's JavaScript SDK, which needs no change.
//
//   npm install openai
//   rayreel serve                                     # in another terminal
//   export OPENAI_BASE_URL=http://127.0.0.1:8088/v1
//   export OPENAI_API_KEY=rr_…                        # any text, while the server has no keys
//   node openai_sdk.mjs

import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { APIError } from "openai";

const client = new OpenAI();

async function save(name, response) {
  await writeFile(name, Buffer.from(await response.arrayBuffer()));
}

try {
  // What OpenAI's own service has not stands beside the rest: negative_prompt, fps, num_frames,
  // num_inference_steps, guidance_scale, seed, priority, deadline, metadata.
  let video = await client.videos.create({
    prompt: "a red fox running through snow",
    seconds: "2",
    size: "640x352",
    seed: 7,
    num_inference_steps: 10,
  });
  while (video.status === "queued" || video.status === "in_progress") {
    await sleep(500);
    video = await client.videos.retrieve(video.id);
  }
  if (video.status === "failed") throw new Error(`${video.error.code}: ${video.error.message}`);
  await save("fox.mp4", await client.videos.downloadContent(video.id));
  await save("fox.png", await client.videos.downloadContent(video.id, { variant: "thumbnail" }));
  console.log("fox.mp4, fox.png:", video.id);

  // All videos, newest first; the SDK asks for the next page when it is due.
  for await (const { id, status, size } of client.videos.list({ limit: 2 })) {
    console.log(id, status, size);
  }

  // An image; the call waits for it.
  const images = await client.images.generate({ prompt: "a red fox in snow", size: "512x512" });
  await writeFile("image.png", Buffer.from(images.data[0].b64_json, "base64"));
  console.log("image.png");
} catch (error) {
  console.error(error instanceof APIError ? `${error.code}: ${error.message}` : error.message);
  process.exitCode = 1;
}
