//! `rayreel doctor`: is the task store sound?

use rayreel_domain::Code;
use rayreel_server::clock::Random;
use rayreel_server::home::Home;
use serde_json::json;

use crate::args::{self, Global};
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::settings;

/// Checks the store. One that servers share may be in use; a data directory may not.
pub(crate) async fn run(global: &Global, arguments: args::Doctor, out: Out) -> Result<(), Exit> {
    let mut settings = settings::load(global)?.settings;
    if let Some(store) = arguments.store {
        settings.store = store.parse().map_err(|message| Failure::value("store", message))?;
    }
    let faults = match settings.store {
        rayreel_server::config::StoreAt::Sqlite => {
            if !settings.data.is_dir() {
                let message = format!("there is no data directory {}", settings.data.display());
                return Err(Failure::new(Code::StoreUnavailable, message).into());
            }
            let home = Home::open(&settings.data, &Random::from_system()).map_err(Failure::from)?;
            rayreel_server::check_store(&settings, Some(&home)).await
        }
        rayreel_server::config::StoreAt::Redis(_) => {
            rayreel_server::check_store(&settings, None).await
        }
    };
    let faults = faults.map_err(Failure::from)?;
    if out.json {
        out.json(&json!({"sound": faults.is_empty(), "faults": faults}))?;
    } else if faults.is_empty() {
        out.line("the task store is sound")?;
    } else {
        faults.iter().try_for_each(|fault| out.line(fault))?;
    }
    if faults.is_empty() { Ok(()) } else { Err(Exit::Silent(Code::StoreCorrupt.exit())) }
}
