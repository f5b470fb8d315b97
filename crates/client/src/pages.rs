//! Lists, page by page.

use std::vec::IntoIter;

use futures_util::stream::{self, Stream};
use rayreel_domain::State;
use rayreel_domain::wire::api::TaskBody;

use crate::{Client, Error};

/// Which tasks to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only those in this state.
    pub state: Option<State>,
    /// Only those of this model, by its name or an alias.
    pub model: Option<String>,
    /// How many a page has, 1 to 100; 20 if absent.
    pub limit: Option<u8>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
    /// Only those created at this Unix second or later.
    pub created_after: Option<u64>,
    /// Only those created before this Unix second.
    pub created_before: Option<u64>,
}

impl Filter {
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Self { state, model, limit, cursor, created_after, created_before } = self;
        [
            ("state", state.map(|state| state.as_str().to_lowercase())),
            ("model", model.clone()),
            ("limit", limit.map(|limit| limit.to_string())),
            ("cursor", cursor.clone()),
            ("created_after", created_after.map(|time| time.to_string())),
            ("created_before", created_before.map(|time| time.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

/// Tasks of a list, however many pages it has.
#[derive(Debug)]
pub struct Tasks {
    client: Client,
    /// For the next page, if there may be one.
    filter: Option<Filter>,
    ready: IntoIter<TaskBody>,
}

impl Tasks {
    pub(crate) fn new(client: Client, filter: Filter) -> Self {
        Self { client, filter: Some(filter), ready: Vec::new().into_iter() }
    }

    /// The next task; none at the end. After an error the same page is asked for again.
    pub async fn next(&mut self) -> Option<Result<TaskBody, Error>> {
        loop {
            if let Some(task) = self.ready.next() {
                return Some(Ok(task));
            }
            let filter = self.filter.as_mut()?;
            let page = match self.client.list(filter).await {
                Ok(page) => page,
                Err(error) => return Some(Err(error)),
            };
            self.ready = page.data.into_iter();
            match page.next_cursor.filter(|_| page.has_more) {
                Some(cursor) => filter.cursor = Some(cursor),
                None => self.filter = None,
            }
        }
    }

    /// The same as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<TaskBody, Error>> + Send {
        stream::unfold(Some(self), |tasks| async {
            let mut tasks = tasks?;
            let next = tasks.next().await?;
            let rest = next.is_ok().then_some(tasks);
            Some((next, rest))
        })
    }
}
