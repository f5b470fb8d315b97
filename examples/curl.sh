#!/usr/bin/env bash
# A video with curl and jq: submitted, followed, downloaded.
#
#   rayreel serve                                       # in another terminal
#   examples/curl.sh "a red fox running through snow" fox.mp4
#
# RAYREEL_SERVER and RAYREEL_TOKEN name another server, and a key for it.
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: curl.sh PROMPT FILE" >&2; exit 2; }
prompt=$1 file=$2
server=${RAYREEL_SERVER:-http://127.0.0.1:8088}
answer=$(mktemp)
trap 'rm -f "$answer" "$file.part"' EXIT
credentials=(${RAYREEL_TOKEN:+--header "Authorization: Bearer $RAYREEL_TOKEN"})

# call FILE …: writes the answer there; a server with a bucket sends us to the file, where curl does not
# send the key. A refusal ends the script, with the server's message.
call() {
  curl --silent --show-error --location --output "$1" --fail-with-body \
    --retry 3 --retry-connrefused --retry-max-time 60 "${credentials[@]}" "${@:2}" && return
  jq -r '.error | "\(.code): \(.message)"' "$1" >&2 || true
  exit 1
}

# With this key a repetition makes no second task.
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
jq -n --arg prompt "$prompt" '{$prompt, size: "640x352", seconds: 2, steps: 10}' |
  call "$answer" "$server/v1/video/generations" --json @- --header "Idempotency-Key: $key"
id=$(jq -r .id "$answer")
echo "$id submitted" >&2

# The stream ends with the task, or with the connection: until the task has ended, it is opened again.
# It tells every change from the beginning; with the header Last-Event-ID only those that are new.
until call "$answer" "$server/v1/video/generations/$id" &&
  jq -e '.status != "QUEUED" and .status != "RUNNING"' "$answer" >/dev/null; do
  curl -N --silent --show-error "${credentials[@]}" "$server/v1/video/generations/$id/events" |
    sed -un 's/^data: //p' | jq -r --unbuffered '"\(.status) \(.progress) %"' >&2 || sleep 1
done
if ! jq -e '.status == "SUCCEEDED"' "$answer" >/dev/null; then
  jq -r '"\(.id) \(.status): \(.error.code): \(.error.message)"' "$answer" >&2
  exit 1
fi
sha256=$(jq -r .result.sha256 "$answer")

call "$file.part" "$server/v1/video/generations/$id/content"
echo "$sha256  $file.part" | sha256sum --check --quiet
mv "$file.part" "$file"
echo "$file: $(stat -c %s "$file") bytes"
