//! Files that come through the server.

use std::fmt;

use axum::body::Bytes;
use futures_util::stream::{Stream, StreamExt};
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};

use super::super::{Error, Key};
use super::{S3, failed, hex};

/// What is held in memory of a file, and sent at a time; longer ones are put together by the store.
const PART: usize = 8 << 20;

/// Parts that are put together at the end. Dropped before it, they are thrown away.
struct Upload(Option<Box<dyn MultipartUpload>>);

impl Upload {
    async fn put(&mut self, part: PutPayload) -> Result<(), Error> {
        match &mut self.0 {
            Some(upload) => upload.put_part(part).await.map_err(failed),
            None => Ok(()),
        }
    }

    async fn complete(mut self) -> Result<(), Error> {
        if let Some(upload) = &mut self.0 {
            upload.complete().await.map_err(failed)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut upload) = self.0.take() else { return };
        // Without a runtime the process is about to end; the parts go with their task.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = upload.abort().await {
                tracing::warn!(%error, "parts of an upload that broke off stay until their task goes");
            }
        });
    }
}

/// What has come and was not sent on.
#[derive(Default)]
struct Batch {
    chunks: Vec<Bytes>,
    length: usize,
}

impl Batch {
    /// Takes what it has room for.
    fn take_of(&mut self, chunk: &mut Bytes) {
        let taken = chunk.split_to(chunk.len().min(PART - self.length));
        self.length += taken.len();
        self.chunks.push(taken);
    }

    fn empty(&mut self) -> PutPayload {
        self.length = 0;
        std::mem::take(&mut self.chunks).into_iter().collect()
    }
}

impl S3 {
    pub(in super::super) async fn put_stream<E: fmt::Display>(
        &self,
        key: &Key,
        mut stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
        bytes: u64,
        sha256: &str,
    ) -> Result<(), Error> {
        let path = self.at(&key.0);
        let mut upload = Upload(None);
        if bytes > PART as u64 {
            upload.0 = Some(self.store.put_multipart(&path).await.map_err(failed)?);
        }
        let (mut length, mut hash, mut batch) = (0u64, Sha256::new(), Batch::default());
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|error| Error::Interrupted(error.to_string()))?;
            length += chunk.len() as u64;
            if length > bytes {
                return Err(Error::too_long(bytes));
            }
            hash.update(&chunk);
            while !chunk.is_empty() {
                if batch.length == PART {
                    upload.put(batch.empty()).await?;
                }
                batch.take_of(&mut chunk);
            }
        }
        if length < bytes {
            return Err(Error::too_short(length, bytes));
        }
        let found = hex(&hash.finalize());
        if found != sha256 {
            return Err(Error::other_bytes(&found, sha256));
        }
        if upload.0.is_none() {
            self.store.put(&path, batch.empty()).await.map_err(failed)?;
            return Ok(());
        }
        upload.put(batch.empty()).await?;
        upload.complete().await
    }
}
