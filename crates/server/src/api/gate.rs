//! What every request passes on its way in and out: who may call, a request id, the access log and
//! the count, panics, and the one form of all refusals. Written by hand around the router, because
//! each layer of middleware would cost every request an allocation and a copy.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, StreamExt};
use http::header::{
    ALLOW, AUTHORIZATION, DATE, HOST, HeaderName, ORIGIN, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request};
use hyper::body::Incoming;
use rayreel_domain::Code;
use rayreel_domain::id::TenantName;
use rayreel_domain::key::Scope;
use tower_service::Service;

use super::cors;
use super::error::Error;
use super::links;
use super::socket::CHUNKED;
use crate::App;
use crate::keyring::Caller;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const WORKER_ROUTES: &str = "/v1/worker/";
const REFERENCE_ROUTES: &str = "/docs/";
const WEBHOOK_ROUTES: &str = "/v1/webhooks/";
const ADMIN_ROUTES: &str = "/v1/admin/";

/// The router behind its gate.
pub(super) struct Gate {
    app: Arc<App>,
    router: Router,
}

impl Gate {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { router: super::router(Arc::clone(&app)), app }
    }

    /// Answers one request.
    pub(super) async fn handle(&self, request: Request<Incoming>) -> Response {
        let started = self.app.settings.log.access.then(|| self.app.components.clock.monotonic());
        let id = self.request_id(request.headers());
        let method = request.method().clone();
        let uri = request.uri().clone();
        let origin = cors::allowed(&self.app.settings.cors_origins, request.headers());
        let mut known = None;
        let answer = if origin.is_some() && cors::is_preflight(&request) {
            cors::preflight()
        } else {
            match self.identify(&request, origin.is_some()) {
                Err(refusal) => refusal.into_response(),
                Ok(caller) => {
                    known.clone_from(&caller);
                    match permit(&request, caller.as_deref()) {
                        Err(refusal) => refusal.into_response(),
                        Ok(()) => self.serve(request.map(Body::new), caller).await,
                    }
                }
            }
        };
        let mut response = finish(answer, &id, &method, uri.path());
        cors::mark(&mut response, &self.app.settings.cors_origins, origin);
        let (route, status) = (pattern(uri.path()), response.status().as_u16());
        match started {
            None => {
                tracing::debug!(request_id = id_text(&id), %method, path = uri.path(), status, "answered");
            }
            Some(started) => {
                let took = self.app.components.clock.monotonic().saturating_sub(started);
                let caller = known.as_deref();
                let proved = response.extensions_mut().remove::<TenantName>();
                // Workers serve all tenants.
                let tenant = caller.map(|caller| &caller.tenant).or(proved.as_ref());
                let tenant = tenant.filter(|_| !uri.path().starts_with(WORKER_ROUTES));
                // The path has no secrets: keys go into a header, and signatures into the query.
                tracing::info!(
                    target: "rayreel::access",
                    request_id = id_text(&id),
                    %method,
                    path = uri.path(),
                    status,
                    ms = took.as_millis() as u64,
                    tenant = tenant.map(TenantName::as_str),
                    key = caller.and_then(|caller| caller.key.as_deref()),
                );
            }
        }
        self.app.metrics.answered(&method, route, status);
        response
    }

    /// Lets the caller in, for as long as it may call: what it has open ends with its key.
    async fn serve(&self, mut request: Request<Body>, caller: Option<Arc<Caller>>) -> Response {
        // One of the admin API may be about its caller's own key. They never hang but for their
        // bodies, after which their caller is looked at again.
        let may_end = caller.as_ref().filter(|_| !request.uri().path().starts_with(ADMIN_ROUTES));
        let ended = may_end.and_then(|caller| caller.ended());
        if let Some(caller) = &caller {
            request.extensions_mut().insert(Arc::clone(caller));
        }
        let answer = AssertUnwindSafe(self.router.clone().call(request)).catch_unwind();
        let answer = async {
            match answer.await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(panic) => Error::internal(panic_text(&*panic)).into_response(),
            }
        };
        let (Some(caller), Some(ended)) = (caller, ended) else { return answer.await };
        let mut response = tokio::select! {
            // The answer first: most are there at once, and then nothing is waited for.
            biased;
            response = answer => response,
            () = ended => return over(&caller).into_response(),
        };
        // What is whole is as good as sent.
        if response.body().size_hint().exact().is_none()
            && let Some(ended) = caller.ended()
        {
            let streamed = std::mem::take(response.body_mut()).into_data_stream();
            *response.body_mut() = Body::from_stream(streamed.take_until(ended));
        }
        response
    }

    /// The answer to what could not be read as a request.
    pub(super) fn refuse(&self, refusal: Error) -> Response {
        let id = self.request_id(&HeaderMap::new());
        let mut answer = finish(refusal.into_response(), &id, &Method::TRACE, "");
        let now = UNIX_EPOCH + Duration::from_millis(self.app.components.clock.wall().0);
        if let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
            answer.headers_mut().insert(DATE, now);
        }
        // Which method it was is not known; this one counts as any other.
        let status = answer.status().as_u16();
        self.app.metrics.answered(&Method::TRACE, pattern(""), status);
        if self.app.settings.log.access {
            // Whatever it says of itself can't be trusted to be one line.
            tracing::info!(target: "rayreel::access", request_id = id_text(&id), status);
        }
        answer
    }

    /// The caller's request id if it is a plain word, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        match headers.get(REQUEST_ID) {
            Some(id) if (1..=64).contains(&id.len()) && id.as_bytes().iter().all(plain) => {
                id.clone()
            }
            _ => {
                let id = format!("{:016x}", self.app.components.random.number());
                HeaderValue::from_maybe_shared(Bytes::from(id)).expect("hexadecimal digits")
            }
        }
    }

    /// May this request be heard at all, and who asks? None asks where nobody needs to say so. A
    /// `friend` is a page of another site that is configured.
    fn identify(
        &self,
        request: &Request<Incoming>,
        friend: bool,
    ) -> Result<Option<Arc<Caller>>, Error> {
        let foreign = |message: &'static str| Error::new(Code::Forbidden, message);
        let (headers, path) = (request.headers(), request.uri().path());
        let (host, authority) = (host(headers)?, request.uri().authority());
        // Where the address itself names a host, that one is meant.
        let host = authority.map_or(host, |authority| authority.as_str());
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next()
            && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some())
        {
            // Hyper undoes only the last one.
            return Err(Error::new(Code::InvalidRequest, CHUNKED).param("Transfer-Encoding"));
        }
        let keyring = &self.app.keyring;
        let for_all = is_open(path) || links::is_signed(request.uri());
        if keyring.is_locked() {
            // A bearer token is proof enough: no browser sends it by itself.
            return if for_all { Ok(None) } else { self.authenticate(request).map(Some) };
        }
        // Against DNS rebinding: a page that resolves its own name to this machine.
        if !is_local(host) {
            return Err(foreign(
                "the Host header is foreign: call the server as localhost, 127.0.0.1 or [::1]",
            ));
        }
        // Against other sites' pages: their scripts may not change anything. Without CORS headers
        // they can't read answers either.
        if !friend
            && !matches!(*request.method(), Method::GET | Method::HEAD)
            && headers.get_all(ORIGIN).iter().any(|origin| !same_site(origin, host))
        {
            return Err(foreign("the Origin header is foreign: this is another site's page"));
        }
        if for_all {
            Ok(None)
        } else if path.starts_with(WORKER_ROUTES) {
            self.authenticate(request).map(Some)
        } else {
            Ok(Some(keyring.guest()))
        }
    }

    /// The caller whose token this is.
    fn authenticate(&self, request: &Request<Incoming>) -> Result<Arc<Caller>, Error> {
        let mut given = request.headers().get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        // Of two, others might take the other one.
        let given = given.next().filter(|_| given.next().is_none()).unwrap_or_default();
        let token = match given.split_at_checked("Bearer ".len()) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"Bearer ") => token,
            _ => b"",
        };
        let now = self.app.components.clock.wall();
        self.app.keyring.authenticate(token, now).ok_or_else(|| {
            let for_workers = request.uri().path().starts_with(WORKER_ROUTES);
            unauthorized(match (for_workers, token.is_empty()) {
                (true, _) => "the worker token is missing or wrong",
                (false, true) => SEND_A_KEY,
                (false, false) => "this key is unknown, expired or revoked",
            })
        })
    }
}

/// Is the caller's key good for such a request?
fn permit<B>(request: &Request<B>, caller: Option<&Caller>) -> Result<(), Error> {
    let Some(caller) = caller else { return Ok(()) };
    let needed = scope(request.method(), request.uri().path());
    if caller.may(needed) {
        return Ok(());
    }
    let message = format!("your key has not the scope `{needed}`, which this needs");
    Err(Error::new(Code::ScopeMissing, message))
}

const SEND_A_KEY: &str = "send your key as `Authorization: Bearer rr_…`";

fn unauthorized(message: &'static str) -> Error {
    Error::new(Code::Unauthorized, message)
        .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

/// The answer to a caller that was let in and may not go on.
pub(super) fn over(caller: &Caller) -> Error {
    unauthorized(match caller.key {
        Some(_) => "this key has just been revoked, or has expired",
        // It came in when none was needed.
        None => SEND_A_KEY,
    })
}

/// Is this answered to everybody? It tells nothing of any tenant.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/openapi.json" | "/docs")
        || path.starts_with(REFERENCE_ROUTES)
}

/// What a key must be good for.
fn scope(method: &Method, path: &str) -> Scope {
    if path.starts_with(WORKER_ROUTES) {
        Scope::Worker
    } else if path.starts_with(ADMIN_ROUTES) || path == "/metrics" {
        Scope::Admin
    } else if path.starts_with(WEBHOOK_ROUTES) {
        // Who knows the secret can speak in the server's name.
        Scope::Submit
    } else if matches!(*method, Method::GET | Method::HEAD) || path.ends_with("/link") {
        // A link shows what its maker may read.
        Scope::Read
    } else {
        Scope::Submit
    }
}

fn id_text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

/// Gives a refusal its body, and every answer its request id.
fn finish(mut answer: Response, id: &HeaderValue, method: &Method, path: &str) -> Response {
    if let Some(refusal) = answer.extensions_mut().remove::<Error>() {
        let (request_id, cause) = (id_text(id), refusal.cause());
        if refusal.is_fault() {
            tracing::error!(request_id, %method, path, cause, "request failed");
        } else {
            tracing::debug!(request_id, %method, path, cause, "request refused");
        }
        let allow = answer.headers_mut().remove(ALLOW);
        answer = refusal.render(request_id);
        if let Some(allow) = allow {
            answer.headers_mut().insert(ALLOW, allow);
        }
    }
    answer.headers_mut().insert(REQUEST_ID, id.clone());
    answer
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}

/// Whom the request is for. Every request says so, once.
fn host(headers: &HeaderMap) -> Result<&str, Error> {
    let wrong = |message: &'static str| Error::new(Code::InvalidRequest, message).param("Host");
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| wrong("`Host` must be `name:port`")),
        (None, _) => Err(wrong("the request has no `Host`; send one, such as `Host: localhost`")),
        (Some(_), Some(_)) => Err(wrong("the request has more than one `Host`; send one")),
    }
}

/// Does this `host[:port]` name this machine?
fn is_local(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    };
    let ours = ["localhost", "127.0.0.1", "[::1]"];
    ours.iter().any(|ours| name.eq_ignore_ascii_case(ours))
        && port.bytes().all(|b| b.is_ascii_digit())
}

/// Is this the Origin of a page of ours?
fn same_site(origin: &HeaderValue, host: &str) -> bool {
    origin.to_str().ok().and_then(|text| text.split_once("://")).is_some_and(|(scheme, at)| {
        matches!(scheme, "http" | "https") && at.eq_ignore_ascii_case(host)
    })
}

/// The route that a path belongs to, for the metrics: a closed set, whatever callers make up.
pub(super) fn pattern(path: &str) -> &'static str {
    const WHOLE: &[&str] = &[
        "/generate",
        "/v1/images/generations",
        "/v1/models",
        "/v1/files",
        "/v1/webhooks/secret",
        "/v1/webhooks/secret/rotate",
        "/v1/worker/claim",
        "/v1/worker/control",
        "/v1/worker/beat",
        "/v1/worker/register",
        "/v1/worker/deregister",
        "/v1/worker/uploads",
        "/v1/worker/parts",
        "/v1/worker/commit",
        "/v1/worker/fail",
        "/v1/worker/release",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/docs/reference.js",
        "/docs/reference.css",
    ];
    if let Some(rest) = path.strip_prefix("/v1/video/generations") {
        if rest.split('/').skip(2).eq(["webhook", "redeliver"]) {
            return "/v1/video/generations/{id}/webhook/redeliver";
        }
        let mut segments = rest.split('/').skip(1);
        return match (rest.is_empty(), segments.next(), segments.next(), segments.next()) {
            (true, ..) => "/v1/video/generations",
            (_, Some(_), None, _) => "/v1/video/generations/{id}",
            (_, Some(_), Some("cancel"), None) => "/v1/video/generations/{id}/cancel",
            (_, Some(_), Some("events"), None) => "/v1/video/generations/{id}/events",
            (_, Some(_), Some("content"), None) => "/v1/video/generations/{id}/content",
            (_, Some(_), Some("link"), None) => "/v1/video/generations/{id}/link",
            _ => "other",
        };
    }
    if let Some(rest) = path.strip_prefix("/v1/files/") {
        return match rest.split_once('/') {
            None => "/v1/files/{id}",
            Some((_, "content")) => "/v1/files/{id}/content",
            Some(_) => "other",
        };
    }
    if let Some(rest) = path.strip_prefix("/v1/videos") {
        let mut segments = rest.split('/').skip(1);
        return match (rest.is_empty(), segments.next(), segments.next(), segments.next()) {
            (true, ..) => "/v1/videos",
            (_, Some(_), None, _) => "/v1/videos/{id}",
            (_, Some(_), Some("content"), None) => "/v1/videos/{id}/content",
            (_, Some(_), Some("remix"), None) => "/v1/videos/{id}/remix",
            _ => "other",
        };
    }
    if let Some(rest) = path.strip_prefix("/v1/admin/") {
        let mut segments = rest.split('/');
        return match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("keys"), None, ..) => "/v1/admin/keys",
            (Some("keys"), Some(_), None, _) => "/v1/admin/keys/{id}",
            (Some("workers"), None, ..) => "/v1/admin/workers",
            (Some("workers"), Some(_), Some("drain"), None) => "/v1/admin/workers/{name}/drain",
            (Some("pools"), None, ..) => "/v1/admin/pools",
            (Some("pools"), Some(_), Some("drain"), None) => "/v1/admin/pools/{name}/drain",
            (Some("pools"), Some(_), Some("resume"), None) => "/v1/admin/pools/{name}/resume",
            (Some("tenants"), None, ..) => "/v1/admin/tenants",
            (Some("tenants"), Some(_), None, _) => "/v1/admin/tenants/{name}",
            _ => "other",
        };
    }
    if path.strip_prefix("/v1/models/").is_some_and(|name| !name.is_empty()) {
        return "/v1/models/{name}";
    }
    if path.starts_with("/v1/worker/uploads/") {
        return "/v1/worker/uploads/{task}/{attempt}/{nonce}/{index}";
    }
    if let Some(attempt) = path.strip_prefix("/v1/worker/inputs/") {
        return match attempt.ends_with("/last") {
            true => "/v1/worker/inputs/{task}/{attempt}/{nonce}/last",
            false => "/v1/worker/inputs/{task}/{attempt}/{nonce}",
        };
    }
    WHOLE.iter().copied().find(|whole| *whole == path).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8088", "[::1]", "[::1]:1"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80.evil.example",
            "evil@localhost",
            "::1",
            "[::1",
            "0.0.0.0",
            "127.0.0.2",
            "localhost:80:80",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_ours_with_the_same_host_and_port() {
        let host = "127.0.0.1:8088";
        let ours = |origin: &'static str| same_site(&HeaderValue::from_static(origin), host);
        assert!(ours("http://127.0.0.1:8088"));
        for foreign in
            ["null", "http://127.0.0.1", "http://localhost:8088", "file://127.0.0.1:8088"]
        {
            assert!(!ours(foreign), "{foreign}");
        }
    }

    #[test]
    fn every_documented_path_has_a_pattern_of_its_own() {
        let document: serde_json::Value =
            serde_json::from_str(&super::super::document()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        assert!(paths.len() >= 9);
        for path in paths.keys() {
            assert_eq!(pattern(&path.replace("{id}", "task_1")), path);
        }
        for made_up in [
            "/",
            "/v1/video/generationsx",
            "/v1/video/generations/a/b",
            "/v1/videosx",
            "/v1/videos/a/b",
            "/v1/models/",
            "/healthz/",
        ] {
            assert_eq!(pattern(made_up), "other", "{made_up}");
        }
    }
}
