//! `/docs`: the reference page, which draws `/openapi.json`. Plain files of ours in the binary: the
//! page loads nothing from anywhere else, and may not.

use axum::response::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue};

const HTML: &str = include_str!("index.html");
const SCRIPT: &str = include_str!("reference.js");
const STYLE: &str = include_str!("reference.css");

/// Nothing but our own script, style and document.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// This document as a page to read and to search.
#[utoipa::path(get, path = "/docs", tag = "probes", operation_id = "reference_page", responses(
    (status = 200, description = "The page.", content_type = "text/html", body = String),
))]
pub(super) async fn page() -> Response {
    file("text/html; charset=utf-8", HTML)
}

pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", SCRIPT)
}

pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

fn file(media_type: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(text.into());
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, media_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // A new version of the server brings its own.
        (CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
