//! Where callers reach this server: what its URLs begin with.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use rayreel_domain::Code;

use super::Api;
use super::error::Error;

/// `public_url`, or else the host that the request names. Without a slash at its end.
#[derive(Clone)]
pub(super) struct Base(String);

impl Base {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromRequestParts<Arc<Api>> for Base {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Error> {
        if let Some(url) = &api.app.settings.public_url {
            return Ok(Self(url.clone()));
        }
        let wrong = || {
            Error::new(Code::InvalidRequest, "`Host` must be `name` or `name:port`").param("Host")
        };
        let named = parts.headers.get(HOST).map(|host| host.as_bytes());
        // The gate has made sure that there is one, and takes the address's own before it.
        let authority = match (parts.uri.authority(), named) {
            (Some(authority), _) => authority.clone(),
            (None, Some(host)) => Authority::try_from(host).map_err(|_| wrong())?,
            (None, None) => return Err(wrong()),
        };
        if authority.as_str().contains('@') {
            return Err(wrong());
        }
        Ok(Self(format!("http://{authority}")))
    }
}
