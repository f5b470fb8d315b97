// Draws the OpenAPI document. Whatever comes from the document becomes text, never markup.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
let components = {};

/** An element with attributes and children; strings become text. */
function el(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.flat(Infinity).filter((child) => child != null && child !== ""));
  return made;
}

/** A line of text in which `code` is code. */
function inline(text) {
  return text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

/** Paragraphs, and lists of lines that begin with a dash. */
function prose(text) {
  return (text || "").split(/\n\s*\n/).filter(Boolean).map((part) => (part.startsWith("- ")
    ? el("ul", { class: "list" }, part.split(/\n?^- /m).filter(Boolean).map((line) => el("li", {}, inline(line))))
    : el("p", {}, inline(part))));
}

function resolve(schema) {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? { name, ...components[name] } : schema || {};
}

/** The forms that a schema may have; null is told apart. */
function forms(schema) {
  const all = schema.oneOf || schema.anyOf;
  return all && all.filter((form) => form.type !== "null");
}

function isNullable(schema) {
  const all = schema.oneOf || schema.anyOf || [];
  return [].concat(schema.type || []).includes("null") || all.some((form) => form.type === "null");
}

/** A schema in a few words. */
function typeName(raw) {
  const schema = resolve(raw);
  const several = forms(schema);
  let text;
  if (several) text = several.map(typeName).join(" or ");
  else if (schema.const !== undefined) text = JSON.stringify(schema.const);
  else if (schema.enum) text = schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  else if (schema.items) text = `array of ${typeName(schema.items)}`;
  else text = [].concat(schema.type || schema.name || "any").filter((type) => type !== "null").join(" or ");
  if (schema.format && schema.type && !/^(u?int|double|float)/.test(schema.format)) text += ` (${schema.format})`;
  return isNullable(schema) ? `${text} or null` : text;
}

function limits(schema) {
  const parts = [];
  if (schema.minimum !== undefined && schema.minimum !== 0) parts.push(`at least ${schema.minimum}`);
  if (schema.maximum !== undefined) parts.push(`at most ${schema.maximum}`);
  if (schema.minLength) parts.push(`at least ${schema.minLength} characters`);
  if (schema.maxLength !== undefined) parts.push(`at most ${schema.maxLength} characters`);
  if (schema.default !== undefined) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(", ");
}

/** The object whose fields are worth showing behind a schema. */
function objectsOf(raw) {
  const schema = resolve(raw);
  const several = forms(schema);
  if (several) return several.flatMap(objectsOf);
  if (schema.items) return objectsOf(schema.items);
  if (schema.allOf) return schema.allOf.flatMap(objectsOf);
  return schema.properties ? [schema] : [];
}

/** The fields of an object; those within are drawn when they are opened. */
function fields(schema) {
  const must = new Set(schema.required || []);
  const all = Object.entries(schema.properties || {});
  const sorted = [...all.filter(([name]) => must.has(name)), ...all.filter(([name]) => !must.has(name))];
  return el("dl", {}, sorted.map(([name, raw]) => {
    const inner = resolve(raw);
    const [form] = forms(inner) || [];
    const said = prose(raw.description || (form && form.description) || inner.description);
    const nested = objectsOf(raw).filter((object) => object !== schema);
    return el("div", {},
      el("dt", {}, name, el("span", { class: "type" }, typeName(raw)),
        must.has(name) ? el("span", { class: "must" }, "required") : null),
      el("dd", {}, said, limits(inner) ? el("p", { class: "soft" }, limits(inner)) : null,
        nested.map((object) => lazy(object.name ? `fields of ${object.name}` : "its fields", () => fields(object)))));
  }));
}

function lazy(title, draw) {
  const made = el("details", {}, el("summary", {}, title));
  made.addEventListener("toggle", () => {
    if (made.open && made.children.length === 1) made.append(draw());
  });
  return made;
}

/** A value that fits a schema, from its examples where it has some. */
function sample(raw, depth = 0, name = "") {
  const schema = resolve(raw);
  if (schema.example !== undefined) return schema.example;
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if (schema.default !== undefined) return schema.default;
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  const several = forms(schema);
  if (several) return depth > 10 || !several.length ? null : sample(several[0], depth + 1);
  if (depth > 10) return null;
  const type = [].concat(schema.type || "object").find((name) => name !== "null");
  if (type === "array") return schema.items ? [sample(schema.items, depth + 1)] : [];
  if (type === "object") {
    const entries = Object.entries(schema.properties || {});
    return Object.fromEntries(entries.map(([key, inner]) => [key, sample(inner, depth + 1, key)]));
  }
  // Every time is in Unix seconds.
  if (type === "integer" && name.endsWith("_at")) return 1800000000;
  return { string: "…", integer: schema.minimum || 0, number: schema.minimum || 0, boolean: true }[type] ?? null;
}

/** The named examples of a body, at least one. */
function examplesOf(media) {
  if (media.example !== undefined) return [["", media.example]];
  const named = Object.entries(media.examples || {});
  if (named.length) return named.map(([name, example]) => [example.summary || name, example.value]);
  return media.schema ? [["", sample(media.schema)]] : [];
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The curl command of an operation with an example body. */
function curl(method, path, operation, type, body) {
  const given = (operation.parameters || []).filter((one) => one.in === "path" || (one.required && one.in === "query"));
  let url = path;
  const query = [];
  for (const parameter of given) {
    const value = String(parameter.example ?? sample(parameter.schema));
    if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, value);
    else query.push(`${parameter.name}=${encodeURIComponent(value)}`);
  }
  if (query.length) url += `?${query.join("&")}`;
  const root = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const parts = ["curl"];
  const answers = Object.entries(operation.responses || {}).filter(([status]) => status.startsWith("2"));
  const types = answers.flatMap(([, answer]) => Object.keys(answer.content || {}));
  if (types.includes("text/event-stream")) parts[0] += " -N";
  if (types.some((name) => /^(video|image|application\/octet)/.test(name))) parts[0] += " -OJ";
  if (method !== "get" && !(method === "post" && body !== undefined)) parts[0] += ` -X ${method.toUpperCase()}`;
  parts[0] += ` ${quote(root + url)}`;
  if (!["/healthz", "/readyz", "/openapi.json", "/docs"].includes(path)) parts.push("-H \"Authorization: Bearer $RAYREEL_TOKEN\"");
  if (body !== undefined) {
    if (type === "multipart/form-data") {
      for (const [name, value] of Object.entries(body)) parts.push(`-F ${quote(`${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)}`);
    } else {
      parts.push(`-H ${quote(`Content-Type: ${type}`)}`, `-d ${quote(JSON.stringify(body, null, 2))}`);
    }
  }
  return parts.join(" \\\n  ");
}

function copyable(text) {
  const button = el("button", { type: "button" }, "copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  const box = el("div", { class: "copy" }, el("pre", { tabindex: "0" }, el("code", {}, text)));
  if (navigator.clipboard) box.append(button);
  return box;
}

function parameters(operation) {
  const all = operation.parameters || [];
  if (!all.length) return null;
  return [el("h4", {}, "Parameters"), el("dl", {}, all.map((one) => el("div", {},
    el("dt", {}, one.name, el("span", { class: "type" }, `${one.in}, ${typeName(one.schema)}`),
      one.required ? el("span", { class: "must" }, "required") : null),
    el("dd", {}, prose(one.description), limits(resolve(one.schema)) ? el("p", { class: "soft" }, limits(resolve(one.schema))) : null))))];
}

function requestBody(operation) {
  const bodies = Object.entries((operation.requestBody || {}).content || {});
  return bodies.map(([type, media]) => [
    el("h4", {}, `Body, ${type}`),
    objectsOf(media.schema).map((object) => fields(object)),
  ]);
}

function responses(operation) {
  const all = Object.entries(operation.responses || {});
  return [el("h4", {}, "Answers"), el("dl", {}, all.map(([status, answer]) => {
    const media = Object.entries(answer.content || {});
    const refused = status >= "400";
    return el("div", {},
      el("dt", {}, el("span", { class: "status" }, status), el("span", { class: "type" }, media.map(([type]) => type).join(", "))),
      el("dd", {}, prose(answer.description),
        Object.entries(answer.headers || {}).map(([name, header]) => el("p", {}, el("code", {}, name), " ", inline(header.description || ""))),
        refused ? null : media.flatMap(([, one]) => objectsOf(one.schema)).map((object) => lazy(`fields of ${object.name || "the answer"}`, () => fields(object)))));
  }))];
}

/** What is asked and what comes back, as one may type it; of a call that the server makes, its body. */
function examples(method, path, operation) {
  const bodies = Object.entries((operation.requestBody || {}).content || {});
  if (!path) {
    return bodies.flatMap(([, media]) => examplesOf(media)).map(([, value]) =>
      [el("h4", {}, "Body that you get"), copyable(JSON.stringify(value, null, 2))]);
  }
  const asked = bodies.flatMap(([type, media]) => examplesOf(media).map(([name, value]) => [name, type, value]));
  const commands = asked.length ? asked : [["", "", undefined]];
  const drawn = commands.map(([name, type, value]) => [
    el("h4", {}, name ? `curl: ${name}` : "curl"),
    copyable(curl(method, path, operation, type, value)),
  ]);
  const good = Object.entries(operation.responses || {}).find(([status]) => status.startsWith("2"));
  const json = good && (good[1].content || {})["application/json"];
  if (json && json.schema) {
    drawn.push([el("h4", {}, `Answer ${good[0]}`), copyable(JSON.stringify(examplesOf(json)[0][1], null, 2))]);
  }
  return drawn;
}

function drawOperation({ method, path, operation, id }) {
  return el("article", { id },
    el("h3", {}, inline((operation.summary || id).replace(/\.$/, ""))),
    el("div", { class: "line" }, el("span", { class: `method ${method}` }, method), el("span", {}, path || "your webhook's URL")),
    el("div", { class: "two" },
      el("div", {}, prose(operation.description), parameters(operation), requestBody(operation), responses(operation)),
      el("div", {}, examples(method, path, operation))));
}

/** All words of an operation, for the search: names of fields too. */
function words({ method, path, operation }) {
  const bodies = Object.values((operation.requestBody || {}).content || {});
  const names = bodies.flatMap((media) => objectsOf(media.schema)).flatMap((object) => Object.keys(object.properties || {}));
  const asked = (operation.parameters || []).flatMap((one) => [one.name, one.description]);
  return [method, path || "webhook", operation.summary, operation.description, ...names, ...asked].join(" ").toLowerCase();
}

function draw(doc) {
  components = (doc.components || {}).schemas || {};
  document.title = `${doc.info.title} API`;
  document.getElementById("title").textContent = doc.info.title;
  document.getElementById("version").textContent = doc.info.version;
  const tags = new Map((doc.tags || []).map((tag) => [tag.name, { ...tag, operations: [] }]));
  const add = (method, path, operation) => {
    const tag = (operation.tags || ["other"])[0];
    if (!tags.has(tag)) tags.set(tag, { name: tag, operations: [] });
    tags.get(tag).operations.push({ method, path, operation, id: operation.operationId });
  };
  for (const [path, item] of Object.entries(doc.paths)) {
    for (const method of METHODS.filter((name) => item[name])) add(method, path, item[method]);
  }
  // Calls that the server makes have no path here.
  for (const item of Object.values(doc.webhooks || {})) {
    for (const method of METHODS.filter((name) => item[name])) add(method, "", item[method]);
  }
  const main = document.getElementById("content");
  const toc = document.getElementById("toc");
  main.replaceChildren(el("section", {}, el("h2", {}, "Overview"), prose(doc.info.description)));
  const groups = [];
  // A tag without operations is a chapter.
  for (const tag of [...tags.values()].filter((one) => one.operations.length || one.description)) {
    const links = el("ul", {});
    const entry = el("section", {}, el("h2", {}, el("a", { href: `#tag-${tag.name}` }, tag.name)), links);
    const section = el("section", { id: `tag-${tag.name}` }, el("h2", {}, tag.name), prose(tag.description));
    // Shapes of other services come after those of our own.
    const rank = ({ path }) => (!path || path.startsWith("/v1/") ? 0 : 1);
    const members = tag.operations.sort((a, b) => rank(a) - rank(b)).map((one) => {
      const article = drawOperation(one);
      const title = (one.operation.summary || one.id).replace(/\.$/, "");
      const link = el("li", {}, el("a", { href: `#${one.id}` }, el("span", { class: `method ${one.method}` }, one.method), " ", inline(title)));
      links.append(link);
      section.append(article);
      return { article, link, words: words(one) };
    });
    toc.append(entry);
    main.append(section);
    groups.push({ entry, section, members, words: `${tag.name} ${tag.description || ""}`.toLowerCase() });
  }
  search(groups);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

/** Shows what has every word that was typed. */
function search(groups) {
  const box = document.getElementById("search");
  const count = document.getElementById("count");
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const group of groups) {
      let any = !group.members.length && wanted.every((word) => group.words.includes(word));
      for (const member of group.members) {
        const fits = wanted.every((word) => member.words.includes(word));
        member.article.hidden = member.link.hidden = !fits;
        any ||= fits;
        found += fits;
      }
      group.entry.hidden = group.section.hidden = !any;
    }
    count.textContent = wanted.length ? `${found} found` : "";
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== box) {
      event.preventDefault();
      box.focus();
    } else if (event.key === "Escape" && document.activeElement === box) {
      box.value = "";
      box.dispatchEvent(new Event("input"));
    }
  });
}

fetch("openapi.json")
  .then((answer) => {
    if (!answer.ok) throw new Error(`openapi.json: status ${answer.status}`);
    return answer.json();
  })
  .then(draw)
  .catch((error) => {
    document.getElementById("content").replaceChildren(el("p", {}, `The document could not be drawn: ${error.message}`));
  });
