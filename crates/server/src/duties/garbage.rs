//! Deletes files that nobody refers to: those of attempts without success, and of deleted tasks.

use std::sync::Arc;
use std::time::Duration;

use super::lead::Lead;
use crate::App;

const BATCH: u32 = 100;
const TICK: Duration = Duration::from_secs(30);

pub(super) async fn run(app: Arc<App>, mut lead: Lead) {
    let components = &app.components;
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = lead.won() => {}
        }
        match collect(&app).await {
            Ok(collected) if collected == BATCH as usize => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "garbage could not be collected"),
        }
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = components.feed.garbage.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// One batch; deleting a folder that is gone is no error, so a crash in between costs nothing.
async fn collect(app: &App) -> Result<usize, String> {
    let components = &app.components;
    let garbage = components.store.garbage(BATCH).await.map_err(|error| error.to_string())?;
    let mut done = Vec::with_capacity(garbage.len());
    for item in &garbage {
        components
            .artifacts
            .delete_folder(&item.folder)
            .await
            .map_err(|error| error.to_string())?;
        done.push(item.id);
    }
    if !done.is_empty() {
        components.store.collected(&done).await.map_err(|error| error.to_string())?;
    }
    Ok(done.len())
}
