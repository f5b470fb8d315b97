//! What a store can do beyond the least, tried out on it: what it says of itself, or is known for,
//! changes with its version and with what stands before it.

use axum::body::Bytes;
use http::header::IF_NONE_MATCH;
use http::{HeaderValue, Method, StatusCode};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::super::{Error, Missing, Pieces, sha256};
use super::request::{self, Answer, CHECKSUM, Request};
use super::{S3, failed};

const WHAT: &[u8] = b"what this store can do";
/// As long, and not the same.
const OTHER: &[u8] = b"what this store can't d";

/// What a store was found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Abilities {
    /// It refuses an address whose signature is not for the request.
    pub(super) signatures: bool,
    /// It refuses bytes that do not have the checksum that is announced with them.
    pub(super) checksums: bool,
    /// It refuses to write over a file if it is asked to.
    pub(super) create_only: bool,
    /// It puts a file together from parts, and tells which it has.
    pub(super) parts: bool,
}

impl Abilities {
    /// May workers write to it themselves? Only if nothing else can come to lie there than what was
    /// announced.
    pub(super) fn direct(self) -> bool {
        self.signatures && self.checksums
    }
}

impl S3 {
    /// What the store can do; asked once, unless it does not answer.
    pub(in super::super) async fn abilities(&self) -> Result<Abilities, Error> {
        let try_out = || async {
            let name = format!(".probe/{:016x}", self.random.number());
            let path = self.at(&Path::from(name));
            let tried = self.try_out(&path).await;
            // What is left of a trial that failed is a few bytes.
            _ = self.store.delete(&path).await;
            let abilities = tried?;
            self.tell(abilities);
            Ok(abilities)
        };
        self.abilities.get_or_try_init(try_out).await.copied()
    }

    fn tell(&self, abilities: Abilities) {
        let Abilities { signatures, checksums, create_only, parts } = abilities;
        tracing::info!(
            store = %self.bucket, signatures, checksums, create_only, parts, "artifact store tried out"
        );
        if !signatures {
            tracing::warn!(
                store = %self.bucket,
                "the artifact store takes addresses whose signature is wrong: anybody who reaches it can \
                 write to it"
            );
        }
        if !abilities.direct() {
            tracing::warn!(
                store = %self.bucket,
                "the artifact store does not check what it is given; workers upload through the server"
            );
        }
    }

    async fn try_out(&self, path: &Path) -> Result<Abilities, Error> {
        // What everything else needs: to write, to look, to list, to delete.
        let put = self.store.put(path, Bytes::from_static(WHAT).into()).await;
        put.map_err(|error| self.bucket.explain(error))?;
        self.delete_below(path).await?;
        let signatures = self.checks_signatures(path).await?;
        let checksums = self.checks_checksums(path).await?;
        let create_only = self.creates_only(path).await?;
        let parts = checksums && self.puts_together(path).await?;
        Ok(Abilities { signatures, checksums, create_only, parts })
    }

    /// Is an address for one key refused at another?
    async fn checks_signatures(&self, path: &Path) -> Result<bool, Error> {
        let elsewhere: Path = path.parts().chain(Path::from("other").parts()).collect();
        let request = with_checksum(WHAT, WHAT)?;
        let url =
            request::sign(&self.store, Method::PUT, &elsewhere, &request, request::LIMIT).await?;
        let mut moved =
            request::sign(&self.store, Method::PUT, path, &request, request::LIMIT).await?;
        moved.set_query(url.query());
        let answer = self.send_to(moved, Method::PUT, request).await?;
        Ok(!answer.status.is_success())
    }

    /// Are the right bytes taken, and others refused?
    async fn checks_checksums(&self, path: &Path) -> Result<bool, Error> {
        let put = async |sent| self.send(Method::PUT, path, with_checksum(WHAT, sent)?).await;
        Ok(put(WHAT).await?.status.is_success() && !put(OTHER).await?.status.is_success())
    }

    /// Is a second file under the same name refused, and a first one taken?
    async fn creates_only(&self, path: &Path) -> Result<bool, Error> {
        let create = async || -> Result<Answer, Error> {
            let mut request = with_checksum(WHAT, WHAT)?;
            request.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            self.send(Method::PUT, path, request).await
        };
        self.store.delete(path).await.map_err(failed)?;
        let (first, second) = (create().await?, create().await?);
        Ok(first.status.is_success() && second.status == StatusCode::PRECONDITION_FAILED)
    }

    /// Does a file come together from a part that is put as workers do?
    async fn puts_together(&self, path: &Path) -> Result<bool, Error> {
        self.store.delete(path).await.map_err(failed)?;
        let sums = [sha256(WHAT)];
        let pieces = |upload| Pieces {
            bytes: WHAT.len() as u64,
            media_type: "application/octet-stream",
            sha256: &sums,
            upload,
        };
        let Ok(Some(Missing { upload, parts })) = self.pieces(path, pieces(None)).await else {
            return Ok(false);
        };
        for (_, put) in parts {
            let Ok(url) = put.url.parse() else { return Ok(false) };
            let body = Bytes::from_static(WHAT);
            let request = Request { headers: put.headers, body, ..Request::default() };
            if !self.send_to(url, Method::PUT, request).await?.status.is_success() {
                return Ok(false);
            }
        }
        let whole = matches!(self.pieces(path, pieces(Some(&*upload))).await, Ok(None));
        Ok(whole && self.store.head(path).await.is_ok_and(|it| it.size == WHAT.len() as u64))
    }
}

/// A file whose checksum is announced as that of `announced`.
fn with_checksum(announced: &[u8], sent: &'static [u8]) -> Result<Request, Error> {
    let mut request = Request { body: Bytes::from_static(sent), ..Request::default() };
    request.headers.insert(CHECKSUM, request::checksum(&sha256(announced))?);
    Ok(request)
}
