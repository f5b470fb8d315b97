//! The images of a request: from wherever they come, PNGs of its tenant's.

use std::sync::Arc;

use axum::body::Bytes;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rayreel_domain::id::{FileId, TenantName};
use rayreel_domain::request::Input;
use tokio::runtime::Handle;

use super::error::Error;
use super::{Api, generate};
use crate::artifacts::{Key, sha256};
use crate::image::{self, Fault};
use crate::outbound;
use crate::store::Store;

/// Images that are fetched, or wait to be decoded, at once: each may take as many bytes as a body.
pub(super) const MAX_FETCHES: usize = 16;
/// Decoding takes memory and a core.
pub(super) const MAX_DECODERS: usize = 1;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An image that was sent, or named.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A URL, a data URI or the id of a file.
    Named(String),
    /// The file itself.
    Sent(Bytes),
    /// A path on this machine.
    AtPath(String),
    /// What the tenant has sent before.
    Kept(Input),
}

/// The images of a submit.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) image: Option<Source>,
    pub(super) last_image: Option<Source>,
}

impl Api {
    /// Makes an image the tenant's: fetched, decoded, written anew, and stored. Names `param` in
    /// what it refuses.
    pub(super) async fn take_image(
        &self,
        tenant: &TenantName,
        param: &'static str,
        source: Source,
    ) -> Result<Taken, Error> {
        let text = match source {
            Source::Sent(bytes) => return self.keep_image(tenant, param, Raw::Bytes(bytes)).await,
            Source::Kept(input) => return Ok(Taken { input, hold: None }),
            Source::AtPath(path) => {
                // Kept until it is stored: until then it is held in memory.
                let _turn = self.fetching.take(tenant).await?;
                let bytes = generate::read(self, path).await?;
                return self.keep_image(tenant, param, Raw::Bytes(bytes)).await;
            }
            Source::Named(text) => text,
        };
        if let Some(begin) = text.get(..5)
            && begin.eq_ignore_ascii_case("data:")
        {
            return self.keep_image(tenant, param, Raw::DataUri(text)).await;
        }
        if text.starts_with(FileId::PREFIX) {
            let input = self.uploaded(tenant, param, &text).await?;
            return Ok(Taken { input, hold: None });
        }
        if !text.contains(':') {
            let message = format!(
                "`{param}` is an https:// URL, a data URI such as `data:image/png;base64,…`, or the \
                 id of a file, `file_…`"
            );
            return Err(Error::invalid(param, message));
        }
        // Kept until it is stored: until then it is held in memory.
        let _turn = self.fetching.take(tenant).await?;
        let bytes = self.fetch(param, &text).await?;
        self.keep_image(tenant, param, Raw::Bytes(bytes)).await
    }

    /// The image of a file.
    async fn uploaded(
        &self,
        tenant: &TenantName,
        param: &'static str,
        text: &str,
    ) -> Result<Input, Error> {
        let found = match text.parse::<FileId>() {
            Ok(id) => self.app.components.store.file(tenant, id).await?,
            Err(_) => None,
        };
        found.map(|file| file.input).ok_or_else(|| {
            let id: String = text.chars().take(50).collect();
            let message = format!("there is no file `{id}`, or it has expired");
            Error::invalid(param, message)
        })
    }

    async fn fetch(&self, param: &'static str, url: &str) -> Result<Bytes, Error> {
        let limit = self.app.settings.max_body_bytes;
        match self.app.components.outbound.get(url, limit).await {
            Ok(fetched) => Ok(fetched.bytes),
            Err(error @ outbound::Error::Broken(_)) => Err(Error::internal(error)),
            Err(error) => Err(Error::invalid(param, format!("`{param}`: {error}"))),
        }
    }

    async fn keep_image(
        &self,
        tenant: &TenantName,
        param: &'static str,
        raw: Raw,
    ) -> Result<Taken, Error> {
        let png = self.decode(tenant, param, raw).await?;
        self.keep(tenant, png).await
    }

    /// Decodes an image and writes it anew.
    pub(super) async fn decode(
        &self,
        tenant: &TenantName,
        param: &'static str,
        raw: Raw,
    ) -> Result<Bytes, Error> {
        let most = self.app.settings.inputs.max_pixels;
        let turn = self.decoding.take(tenant).await?;
        let decoding = tokio::task::spawn_blocking(move || {
            // A caller who hangs up stops nothing that has begun.
            let _turn = turn;
            raw.normalise(most)
        });
        // A decoder that panics has met an image that it can't read.
        let decoded = decoding.await.unwrap_or_else(|panic| {
            Err(Bad { message: "the image can't be read".to_owned(), cause: panic.to_string() })
        });
        decoded.map(Bytes::from).map_err(|bad| {
            let message = format!("`{param}`: {}", bad.message);
            Error::invalid(param, message).because(bad.cause)
        })
    }

    /// Stores an image.
    pub(super) async fn keep(&self, tenant: &TenantName, png: Bytes) -> Result<Taken, Error> {
        let components = &self.app.components;
        let input = Input {
            place: None,
            sha256: sha256(&png),
            media_type: "image/png".to_owned(),
            bytes: png.len() as u64,
        };
        let input = components.store.hold_input(tenant, input).await?;
        let hold = Hold {
            store: Arc::clone(&components.store),
            tenant: tenant.clone(),
            input: input.clone(),
        };
        let key = Key::content(tenant, &input)
            .ok_or_else(|| Error::internal("the store has given an input no place"))?;
        // The same bytes may be there already.
        let there = components.artifacts.head(&key).await;
        if !there.is_ok_and(|found| found.bytes == input.bytes) {
            components.artifacts.put(&key, png).await?;
        }
        Ok(Taken { input, hold: Some(hold) })
    }
}

/// An image that is stored.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) input: Input,
    /// Keeps it until something names it.
    pub(super) hold: Option<Hold>,
}

/// Somebody is about to name an image. Dropped, it leaves the image to what names it; if nothing
/// does, for the submit was refused or its caller has hung up, it is garbage.
pub(super) struct Hold {
    store: Arc<dyn Store>,
    tenant: TenantName,
    input: Input,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hold").field(&self.input).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Without a runtime the process is about to end, and the hold has its time.
        let Ok(runtime) = Handle::try_current() else { return };
        let (store, tenant) = (Arc::clone(&self.store), self.tenant.clone());
        let input = self.input.clone();
        runtime.spawn(async move {
            if let Err(error) = store.release_input(&tenant, input).await {
                tracing::debug!(%error, "an image that nothing names is kept for its hour");
            }
        });
    }
}

/// An image as it came.
pub(super) enum Raw {
    Bytes(Bytes),
    DataUri(String),
}

/// Why it is not taken: for the caller, and for the log.
struct Bad {
    message: String,
    cause: String,
}

impl From<String> for Bad {
    fn from(message: String) -> Self {
        Self { cause: message.clone(), message }
    }
}

impl From<Fault> for Bad {
    fn from(fault: Fault) -> Self {
        let message = fault.to_string();
        match fault {
            Fault::Unreadable { cause, .. } => Self { message, cause },
            Fault::Refused(_) => message.into(),
        }
    }
}

impl Raw {
    fn normalise(self, max_pixels: u64) -> Result<Vec<u8>, Bad> {
        let bytes = match self {
            Self::Bytes(bytes) => bytes,
            Self::DataUri(text) => read_data_uri(&text)?.into(),
        };
        Ok(image::normalise(&bytes, max_pixels)?)
    }
}

fn read_data_uri(text: &str) -> Result<Vec<u8>, Bad> {
    let form = || "write a data URI as `data:image/png;base64,…`".to_owned();
    let (head, data) = text.get(5..).and_then(|rest| rest.split_once(',')).ok_or_else(form)?;
    let mut words = head.split(';').map(str::trim);
    let is_image = words.next().is_some_and(|word| {
        word.get(..6).is_some_and(|begin| begin.eq_ignore_ascii_case("image/"))
    });
    if !is_image || !words.next_back().is_some_and(|word| word.eq_ignore_ascii_case("base64")) {
        return Err(form().into());
    }
    BASE64.decode(data).map_err(|_| "what stands behind `base64,` is not base64".to_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_uri_is_an_image_in_base64() {
        for good in [
            "data:image/png;base64,aGk=",
            "data:image/png;base64,aGk",
            "DATA:IMAGE/WEBP;BASE64,aGk=",
            "data:image/jpeg;charset=utf-8;base64,aGk=",
        ] {
            assert_eq!(read_data_uri(good).ok().as_deref(), Some(&b"hi"[..]), "{good}");
        }
        for (bad, why) in [
            ("data:", "write a data URI"),
            ("data:x", "write a data URI"),
            ("data:,hi", "write a data URI"),
            ("data:;base64,aGk=", "write a data URI"),
            ("data:image/png,hi", "write a data URI"),
            ("data:text/html;base64,aGk=", "write a data URI"),
            ("data:image/png;base64,@@", "not base64"),
            ("data:image/png;base64,aGk=\n", "not base64"),
        ] {
            let message = read_data_uri(bad).map(drop).map_err(|bad| bad.message);
            assert!(message.as_ref().is_err_and(|text| text.contains(why)), "{bad}: {message:?}");
        }
    }
}
