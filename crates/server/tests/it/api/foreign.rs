//! Ids and keys that are not the caller's, or nobody's, on every route. The routes are taken from the
//! API's own document: a new one that is not looked at here fails the test.

use std::time::Duration;

use rayreel_domain::wire::engine::Role;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS, TOKEN, output, video};
use super::keys::{call, make};
use super::uploads::png;

/// Routes that anybody may ask.
const OPEN: &[&str] = &["/healthz", "/readyz", "/openapi.json", "/docs"];
/// Routes of workers, which are not documented.
const WORKER: &[(Method, &str)] = &[
    (Method::POST, "/v1/worker/register"),
    (Method::POST, "/v1/worker/deregister"),
    (Method::POST, "/v1/worker/claim"),
    (Method::POST, "/v1/worker/control"),
    (Method::POST, "/v1/worker/beat"),
    (Method::POST, "/v1/worker/fail"),
    (Method::POST, "/v1/worker/release"),
    (Method::POST, "/v1/worker/uploads"),
    (Method::POST, "/v1/worker/commit"),
    (Method::PUT, "/v1/worker/uploads/task_1/1/1/0?sha256=a&bytes=1"),
    (Method::GET, "/v1/worker/inputs/task_1/1/1"),
];
/// Ids that could be, and are not.
const NO_TASK: &str = "task_018bcfe5680070707070707070707070";
const NO_FILE: &str = "file_018bcfe5680070707070707070707070";

/// A route of the document.
struct Operation {
    method: Method,
    path: String,
    queries: Vec<String>,
}

fn operations() -> Vec<Operation> {
    let document: Value = serde_json::from_str(&rayreel_server::api::document()).unwrap();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let queries = parameters.filter(|parameter| parameter["in"] == "query");
            operations.push(Operation {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                queries: queries.map(|query| query["name"].as_str().unwrap().to_owned()).collect(),
            });
        }
    }
    assert!(operations.len() >= 33, "{}", operations.len());
    operations
}

impl Operation {
    fn has_id(&self) -> bool {
        self.path.contains('{')
    }

    fn at(&self, id: &str) -> String {
        self.path.replace("{id}", id).replace("{name}", id)
    }

    /// What it needs beside the id.
    fn body(&self) -> &'static str {
        if self.path.ends_with("/remix") { r#"{"prompt": "p"}"# } else { "" }
    }

    fn request(&self, server: &Server, id: &str) -> RequestBuilder {
        let request = server.request(self.method.clone(), &self.at(id));
        request.header("content-type", "application/json").body(self.body())
    }

    /// What a key must be good for.
    fn scope(&self) -> &'static str {
        let path = &*self.path;
        if path.starts_with("/v1/admin/") || path == "/metrics" {
            "admin"
        } else if path.starts_with("/v1/webhooks/") {
            "submit"
        } else if self.method == Method::GET || path.ends_with("/link") {
            "read"
        } else {
            "submit"
        }
    }
}

/// What a tenant has, and the keys of two.
struct House {
    server: Server,
    task: String,
    file: String,
    anna: String,
    bert: String,
}

async fn upload(server: &Server, key: &str) -> String {
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n";
    let body = [part.as_bytes(), &png(), b"\r\n--b--\r\n"].concat();
    let request = server.request(Method::POST, "/v1/files").bearer_auth(key);
    let form = "multipart/form-data; boundary=b";
    let answer = Answer::of(request.header("content-type", form).body(body)).await;
    answer.json::<Value>()["id"].as_str().unwrap().to_owned()
}

impl House {
    async fn new() -> Self {
        let server = Server::start().await;
        let scopes = json!(["submit", "read", "admin"]);
        let (anna, _) = make(&server, json!({"tenant": "anna", "scopes": scopes})).await;
        let (bert, _) = make(&server, json!({"tenant": "bert", "scopes": scopes})).await;
        let body = json!({"prompt": "p", "webhook": "https://hooks.example.com/"});
        let task: Value = call(&server, Method::POST, TASKS, &anna, &body).await.json();
        let task = task["id"].as_str().unwrap().to_owned();
        let files = [(video(b"film"), &b"film"[..]), (output(1, Role::Thumbnail, b"s"), b"s")];
        {
            let worker = server.worker("w").await;
            let fence = worker.take(1).await.fence;
            worker.finish(fence, &files).await;
        }
        // Behind which a page can begin.
        call(&server, Method::POST, TASKS, &anna, &body).await;
        let file = upload(&server, &anna).await;
        Self { server, task, file, anna, bert }
    }

    /// An id of anna's for this route, and one that nobody has; none if its ids are nobody's own.
    fn ids(&self, path: &str) -> Option<[&str; 2]> {
        if path.starts_with("/v1/video/generations") || path.starts_with("/v1/videos") {
            Some([&self.task, NO_TASK])
        } else if path.starts_with("/v1/files") {
            Some([&self.file, NO_FILE])
        } else {
            // What the operator sees is of all tenants, and models are for everybody.
            let all = path.starts_with("/v1/admin/") || path == "/v1/models/{name}";
            assert!(all, "{path}: say here whose its ids are");
            None
        }
    }
}

/// All of an answer but what is of its request alone: its own id, and the one that it asked for.
fn essence(answer: &Answer, asked: &str) -> (u16, Vec<(String, String)>, String) {
    let headers = answer.headers.iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let headers = headers.filter(|(name, _)| name != "date" && name != "x-request-id");
    let mut body: Value = answer.json();
    body["error"]["request_id"] = Value::Null;
    (answer.status.as_u16(), headers.collect(), body.to_string().replace(asked, "ID"))
}

#[tokio::test]
async fn ids_of_others_are_ids_of_nobody() {
    let house = House::new().await;
    let (server, bert) = (&house.server, &house.bert);
    let mut looked_at = 0;
    for operation in operations().iter().filter(|operation| operation.has_id()) {
        let Some([own, unknown]) = house.ids(&operation.path) else { continue };
        let ask =
            async |id: &str| Answer::of(operation.request(server, id).bearer_auth(bert)).await;
        let (theirs, nobodys) = (ask(own).await, ask(unknown).await);
        let what = format!("{} {}", operation.method, operation.path);
        assert_eq!(theirs.refusal_status(), 404, "{what}");
        assert_eq!(essence(&theirs, own), essence(&nobodys, unknown), "{what}");
        looked_at += 1;
    }
    assert!(looked_at >= 14, "{looked_at}");
    // As parameters.
    let plain = [
        "created_after",
        "created_before",
        "expires",
        "limit",
        "model",
        "only",
        "order",
        "purpose",
        "signature",
        "state",
        "variant",
    ];
    let get =
        async |path: &str, key: &str| call(server, Method::GET, path, key, &Value::Null).await;
    for operation in operations() {
        for query in operation.queries.iter().filter(|query| !plain.contains(&&***query)) {
            let path = &operation.path;
            let at = |value: &str| format!("{path}?{query}={value}");
            if query == "cursor" {
                // A position, which is nobody's: whoever has it reads on in his own list.
                let first: Value = get(&format!("{path}?limit=1"), &house.anna).await.json();
                let answer = get(&at(first["next_cursor"].as_str().unwrap()), bert).await;
                assert_eq!(answer.json::<Value>()["data"], json!([]), "{path}");
                continue;
            }
            assert_eq!(query, "after", "{path}: say here what `{query}` names");
            let [own, unknown] = house.ids(path).unwrap();
            let (theirs, nobodys) = (get(&at(own), bert).await, get(&at(unknown), bert).await);
            assert_eq!(theirs.refusal_status(), 400, "{path}");
            assert_eq!(essence(&theirs, own), essence(&nobodys, unknown), "{path}");
        }
    }
    // In what is sent.
    for (path, body) in [
        (TASKS, (|id| json!({"prompt": "p", "image": id})) as fn(&str) -> Value),
        ("/v1/videos", |id| json!({"prompt": "p", "input_reference": {"file_id": id}})),
        ("/generate", |id| json!({"prompt": "p", "image": id})),
    ] {
        let ask = async |id| call(server, Method::POST, path, bert, &body(id)).await;
        let (theirs, nobodys) = (ask(&*house.file).await, ask(NO_FILE).await);
        assert_eq!(theirs.refusal_status(), 400, "{path}");
        assert_eq!(essence(&theirs, &house.file), essence(&nobodys, NO_FILE), "{path}");
    }
    // And all of it is still there.
    for path in [format!("{TASKS}/{}", house.task), format!("/v1/files/{}", house.file)] {
        assert_eq!(get(&path, &house.anna).await.status, 200);
    }
}

#[tokio::test]
async fn what_is_no_id_names_nothing() {
    let house = House::new().await;
    let long = "9".repeat(9_000);
    let upper = house.task.to_uppercase();
    let trailing = format!("{}%20", house.task);
    let inner = format!("{}%2fcontent%2f..", house.task);
    let cut = &house.task[..house.task.len() - 1];
    for operation in operations().iter().filter(|operation| operation.has_id()) {
        let ask = async |id: &str| {
            let line = format!(
                "{} {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
                operation.method,
                operation.at(id),
                house.anna,
                operation.body().len(),
                operation.body(),
            );
            // By hand: a client would tidy the address up.
            house.server.raw(line.as_bytes()).await
        };
        let what = |id: &str| format!("{} {}", operation.method, &operation.at(id)[..]);
        let unknown = house.ids(&operation.path).map_or("nobody", |[_, unknown]| unknown);
        let unknown = essence(&ask(unknown).await, NO_TASK);
        assert_eq!(unknown.0, 404);
        let mut ids = vec![
            "%2e%2e",
            "..%2f..%2fclient_token",
            "..%5c..%5cboot.ini",
            "%00",
            "task_%00",
            "file_%00",
            "%ff",
            "%c0%ae%c0%ae%2f",
            "%",
            "%zz",
            "%0d%0aX-Evil:%201",
            "%25%30%30",
            "task_",
            "file_",
            "'%20OR%201=1%20--",
            "${jndi:ldap:%2f%2fa}",
            "{{7*7}}",
            "null",
            "-1",
            "0",
            "*",
            "~",
            ".",
            &*long,
            &*upper,
            &*trailing,
            &*inner,
            cut,
        ];
        if operation.path == "/v1/models/{name}" {
            // It quotes the name that it was asked for.
            ids.clear();
        }
        for id in ids {
            let answer = ask(id).await;
            assert_eq!(essence(&answer, NO_TASK), unknown, "{}", what(id));
        }
        for id in ["..", "../", "../../etc/passwd", "/", "//", "%2e%2e/%2e%2e", "a/../b", ""] {
            let answer = ask(id).await;
            assert!([404, 405].contains(&answer.refusal_status()), "{}", what(id));
            assert!(!answer.headers.contains_key("x-evil"));
        }
    }
    let path = format!("{TASKS}/{}", house.task);
    let kept = call(&house.server, Method::GET, &path, &house.anna, &Value::Null).await;
    assert_eq!(kept.status, 200);
}

#[tokio::test]
async fn keys_that_are_not_good_open_nothing() {
    let house = House::new().await;
    let server = &house.server;
    let (revoked, id) = make(server, json!({"tenant": "anna"})).await;
    let path = format!("/v1/admin/keys/{id}");
    call(server, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
    let (expired, _) = make(server, json!({"tenant": "anna", "expires_in_days": 1})).await;
    server.world.clock.advance(Duration::from_secs(86_400));
    let (other, _) = make(server, json!({})).await;
    let good = &house.anna;
    let mixed = format!("{}{}", &good[..16], &other[16..]);
    let mut bad: Vec<String> =
        ["", "Bearer", "Bearer ", "Bearer rr_", "Bearer null", "Basic YTpi", "bearer"]
            .map(str::to_owned)
            .into();
    for key in [
        &revoked,
        &expired,
        &mixed,
        &good[..good.len() - 1],
        &good[1..],
        &format!("{good}x"),
        &format!("{good} x"),
        &format!("{good},{good}"),
        &format!("Bearer {good}"),
        &format!("\"{good}\""),
        &good.to_uppercase(),
        &good[3..],
        &good.replace('_', "-"),
    ] {
        bad.push(format!("Bearer {key}"));
    }
    bad.extend([good.clone(), format!("Basic {good}"), format!("Bearer{good}")]);
    let documented = operations();
    let mut routes: Vec<(Method, String)> = documented
        .iter()
        .filter(|operation| !OPEN.contains(&&*operation.path))
        .map(|operation| {
            let own = operation.has_id().then(|| house.ids(&operation.path)).flatten();
            (operation.method.clone(), operation.at(own.map_or("x", |[own, _]| own)))
        })
        .collect();
    assert_eq!(routes.len(), documented.len() - OPEN.len());
    routes.extend(WORKER.iter().map(|(method, path)| (method.clone(), (*path).to_owned())));
    for (method, path) in &routes {
        for credentials in &bad {
            let request = server.request(method.clone(), path);
            let answer = Answer::of(request.header("authorization", credentials)).await;
            let what = format!("{method} {path} with `{credentials}`");
            assert_eq!(answer.refusal_status(), 401, "{what}");
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{what}");
            assert!(!answer.text().contains(&good[3..15]), "{what}: {}", answer.text());
        }
    }

    // Nor does one hide behind another.
    let good = format!("Bearer {good}");
    for [first, second] in [["Bearer x", &good], [&good, "Bearer x"], [&good, &good]] {
        let request = server.request(Method::GET, TASKS).header("authorization", first);
        let answer = Answer::of(request.header("authorization", second)).await;
        answer.refused(401, "unauthorized", None);
    }
    for path in OPEN {
        let request = server.request(Method::GET, path).bearer_auth(&revoked);
        assert_eq!(Answer::of(request).await.status, 200, "{path} is for everybody");
    }
}

#[tokio::test]
async fn keys_open_what_their_scopes_say_and_no_more() {
    let house = House::new().await;
    let server = &house.server;
    let all = ["submit", "read", "admin", "worker"];
    let mut without = Vec::new();
    for scope in all {
        let scopes: Vec<&str> = all.into_iter().filter(|other| *other != scope).collect();
        let body = json!({"tenant": "anna", "scopes": scopes});
        without.push((scope, make(server, body).await.0));
    }
    let but = |scope: &str| &without.iter().find(|(one, _)| *one == scope).unwrap().1;
    for operation in operations().iter().filter(|one| !OPEN.contains(&&*one.path)) {
        let own = operation.has_id().then(|| house.ids(&operation.path)).flatten();
        let scope = operation.scope();
        let request = operation.request(server, own.map_or("x", |[own, _]| own));
        let answer = Answer::of(request.bearer_auth(but(scope))).await;
        let refusal = answer.refused(403, "scope_missing", None);
        assert!(refusal.message.contains(&format!("`{scope}`")), "{}", refusal.message);
    }
    for (method, path) in WORKER {
        let request = server.request(method.clone(), path);
        let answer = Answer::of(request.bearer_auth(but("worker"))).await;
        answer.refused(403, "scope_missing", None);
    }
    // The token of workers is good for nothing else.
    let answer = call(server, Method::GET, TASKS, TOKEN, &Value::Null).await;
    answer.refused(403, "scope_missing", None);
}
