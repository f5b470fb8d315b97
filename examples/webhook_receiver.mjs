// Receives rayreel's webhooks, and believes only those that are signed.
//
//   npm install standardwebhooks
//   export RAYREEL_WEBHOOK_SECRET=$(curl -s localhost:8088/v1/webhooks/secret | jq -r .secret)
//   node webhook_receiver.mjs 8089
//
// Then submit with `"webhook": "https://…"`, an address that leads here. For one on this machine the
// server must be told that it may call it: RAYREEL_OUTBOUND__ALLOW='["127.0.0.1"]'.

import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const MAX_BODY = 1 << 20;
const webhook = new Webhook(process.env.RAYREEL_WEBHOOK_SECRET);
// An event may come more than once, from the server or from somebody who has heard it: its id, which
// is signed, is always the same. Five minutes later the library refuses it. Yours belong into a database.
const seen = new Set();

function handle({ type, data }) {
  if (type === "video.completed") console.log(`${data.id} is done: ${data.result.url}`);
  else console.log(`${data.id} is ${data.status}: ${data.error.code}`);
}

createServer(async (request, response) => {
  const answer = (status) => response.writeHead(status).end();
  const parts = [];
  let length = 0;
  for await (const part of request) {
    length += part.length;
    if (length > MAX_BODY) return answer(413);
    parts.push(part);
  }
  // The signature is that of the bytes as they came: verify first, then read.
  let event;
  try {
    event = webhook.verify(Buffer.concat(parts).toString("utf8"), request.headers);
  } catch (error) {
    console.log(`refused: ${error.message}`);
    return answer(400);
  }
  const id = request.headers["webhook-id"];
  if (!seen.has(id)) {
    handle(event);
    seen.add(id);
  }
  // Any status from 200 to 299, and soon: what takes long is done after the answer.
  answer(204);
}).listen(Number(process.argv[2]), "127.0.0.1");
