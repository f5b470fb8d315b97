//! The self-test of a model that is in quarantine on this worker.

use std::fs;
use std::time::Duration;

use rayreel_domain::Code;
use rayreel_domain::task::{Failure, MAX_MESSAGE};
use rayreel_domain::wire::engine::EngineRequest;
use rayreel_domain::wire::worker::{EngineSetup, ModelSetup, SelfTest};

use crate::attempt::{generate, on_disk};
use crate::engine::Host;
use crate::scratch::Scratch;
use crate::upload::Product;

/// How long a self-test may take, the load of the model included.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// For models that make nothing without one: 64x64 pixels of grey.
const IMAGE: &[u8] = include_bytes!("grey.png");
/// Built-in engines that load nothing themselves: that they are ready says nothing of the model.
const FRONTS: [&str; 2] = ["command", "server"];

/// Starts the engine afresh and has it do what the server asks for.
pub(crate) async fn run(
    host: &mut Host,
    scratch: &Scratch,
    model: &ModelSetup,
    test: EngineRequest,
) -> SelfTest {
    host.leave().await;
    let failure = match tokio::time::timeout(LIMIT, make(host, scratch, model, test)).await {
        Ok(Ok(_)) => {
            tracing::info!(model = %model.name, "the self-test passed");
            None
        }
        Ok(Err(failure)) if failure.code == Code::EngineRefused && !is_front(&model.engine) => {
            // It is loaded and answers. More can't be known before a task comes.
            let message = failure.message;
            tracing::warn!(model = %model.name, message, "could not be tested: the engine refuses it");
            None
        }
        Ok(Err(failure)) => Some(failure),
        Err(_) => {
            host.kill().await;
            let minutes = LIMIT.as_secs() / 60;
            let message = format!("no result within {minutes} minutes");
            Some(Failure::new(Code::MaxRunExceeded, message))
        }
    };
    let failure = failure.map(|failure| {
        let detail = failure.detail.map(|detail| format!("\n{detail}")).unwrap_or_default();
        let message = format!("{}: {}{detail}", failure.code, failure.message);
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        tracing::warn!(model = %model.name, message, "the self-test failed");
        message
    });
    SelfTest { model: model.name.clone(), failure }
}

/// Makes it of text alone and, if that is refused, of an image.
async fn make(
    host: &mut Host,
    scratch: &Scratch,
    model: &ModelSetup,
    mut test: EngineRequest,
) -> Result<Product, Failure> {
    let at_fault = |error| on_disk("the self-test's directory", &error);
    let desk = scratch.desk("self-test").map_err(at_fault)?;
    match generate(host, model, &desk, "self-test/1".into(), test.clone(), |_| {}).await {
        Err(failure) if failure.code == Code::EngineRefused => {}
        made => return made,
    }
    let image = desk.beside("input.png");
    fs::write(&image, IMAGE).map_err(at_fault)?;
    test.image = Some(image.to_string_lossy().into_owned());
    generate(host, model, &desk, "self-test/2".into(), test, |_| {}).await
}

fn is_front(engine: &EngineSetup) -> bool {
    matches!(engine, EngineSetup::BuiltIn(name) if FRONTS.contains(&name.as_str()))
}
