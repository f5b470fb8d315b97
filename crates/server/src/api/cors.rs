//! Pages of other sites that may call the API from a browser (Fetch standard, CORS protocol). Those
//! that are not configured get no headers, so their scripts read nothing.

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};

/// What scripts may send: anything, for there are SDKs that add headers of their own, and nothing
/// here is trusted because a page could not send it. `*` alone leaves out `Authorization`.
const HEADERS: HeaderValue = HeaderValue::from_static("*, authorization");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE");
/// What scripts may read besides the body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "content-range, etag, location, openai-poll-after-ms, preference-applied, retry-after, x-rayreel-test-pattern, \
     x-request-id",
);
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The origin that asks, if its pages may. No browser sends two.
pub(super) fn allowed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let mut given = headers.get_all(ORIGIN).iter();
    let (Some(origin), None) = (given.next(), given.next()) else { return None };
    let known = |one: &String| one == "*" || one.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
    origins.iter().any(known).then(|| origin.clone())
}

/// Does a browser ask whether a page may do something?
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Yes, it may; whether the caller may is decided when it does.
pub(super) fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    response
}

/// Lets the page of this origin read the answer, if its pages may.
pub(super) fn mark(response: &mut Response, origins: &[String], origin: Option<HeaderValue>) {
    if origins.is_empty() {
        return;
    }
    let headers = response.headers_mut();
    // A cache must not give the answer to one who asks without an origin to a page, which could not
    // read it.
    headers.append(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}
