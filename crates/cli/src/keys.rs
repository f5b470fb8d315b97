//! `rayreel keys`: who may call.

use rayreel_domain::wire::admin::{CreateKey, KeyBody};

use crate::args::{self, Global};
use crate::failure::Exit;
use crate::out::Out;
use crate::session::{Session, Workers};
use crate::text;

/// Runs a command, through the server if one runs, and else on the store.
pub(crate) async fn run(global: &Global, command: args::Keys, out: Out) -> Result<(), Exit> {
    let mut session = Session::new(global, Workers::None, out)?;
    let done = match command {
        args::Keys::Create(key) => create(&mut session, key, out).await,
        args::Keys::List => list(&mut session, out).await,
        args::Keys::Revoke { id } => revoke(&mut session, id, out).await,
    };
    let closed = session.close().await;
    done?;
    Ok(closed?)
}

async fn create(session: &mut Session, key: args::CreateKey, out: Out) -> Result<(), Exit> {
    let body = CreateKey {
        name: key.name.unwrap_or_default(),
        tenant: key.tenant.map(|tenant| tenant.to_string()),
        scopes: (!key.scopes.is_empty()).then_some(key.scopes),
        pool: key.pool.map(|pool| pool.to_string()),
        expires_in_days: key.expires_in_days,
    };
    // Not repeated by itself: a second key would be one too many.
    let client = session.client().await?;
    let made = client.create_key(&body).await?;
    if out.json {
        return out.json(&made);
    }
    out.line(made.key.as_deref().unwrap_or_default())?;
    out.note(&format!(
        "key {} of tenant {}, good for {}; it is shown this once, so store it now",
        made.id,
        made.tenant,
        text::scopes(&made)
    ));
    Ok(())
}

async fn list(session: &mut Session, out: Out) -> Result<(), Exit> {
    let keys = session.call(|client| async move { client.keys().await }).await?;
    if out.json {
        return out.json(&keys);
    }
    if keys.data.is_empty() {
        out.note(if keys.locked {
            "no keys but RAYREEL_ADMIN_KEY, which is not stored: every request needs it, or a key \
             that you make"
        } else {
            "no keys: whoever is on this machine may call"
        });
        return Ok(());
    }
    out.line(text::keys(&keys).trim_end())
}

async fn revoke(session: &mut Session, id: String, out: Out) -> Result<(), Exit> {
    let revoked: KeyBody = session
        .call(|client| {
            let id = id.clone();
            async move { client.revoke_key(&id).await }
        })
        .await?;
    if out.json {
        return out.json(&revoked);
    }
    out.line(&format!("key {} of tenant {} is revoked", revoked.id, revoked.tenant))
}
