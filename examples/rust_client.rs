//! A video from Rust: submitted, followed, downloaded.
//!
//!     rayreel serve                                     # in another terminal
//!     cargo run -p rayreel-client --example generate -- "a red fox running through snow" fox.mp4
//!
//! RAYREEL_SERVER and RAYREEL_TOKEN name another server, and a key for it.

use std::env;
use std::error::Error;
use std::process::ExitCode;

use rayreel_client::{Client, SubmitBody, Variant};

async fn generate(prompt: String, path: String) -> Result<(), Box<dyn Error>> {
    let address = env::var("RAYREEL_SERVER").unwrap_or("http://127.0.0.1:8088".to_owned());
    let mut builder = Client::builder(&address);
    if let Ok(key) = env::var("RAYREEL_TOKEN") {
        builder = builder.key(&key);
    }
    let client = builder.build()?;

    // Sent again, with the same idempotency key, if the server is busy or the connection breaks.
    let request = SubmitBody {
        prompt: Some(prompt),
        size: Some("640x352".to_owned()),
        seconds: Some(2.0),
        steps: Some(10),
        ..SubmitBody::default()
    };
    let id = client.submit(&request).await?.id;

    let mut events = client.events(id);
    while let Some(event) = events.next().await {
        let body = event?.body;
        eprintln!("{id} {} {} %", body.status, body.progress);
    }
    if let Some(error) = client.task(id).await?.error {
        return Err(format!("{}: {}", error.code, error.message).into());
    }

    // It goes on where it broke, if it does, and its SHA-256 is checked.
    let part = format!("{path}.part");
    let mut file = tokio::fs::File::create(&part).await?;
    let downloaded = client.download(id, Variant::Main, &mut file).await?;
    tokio::fs::rename(&part, &path).await?;
    println!("{path}: {} bytes of {}", downloaded.bytes, downloaded.media_type);
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = env::args().skip(1);
    let (Some(prompt), Some(path)) = (words.next(), words.next()) else {
        eprintln!("usage: generate PROMPT FILE");
        return ExitCode::from(2);
    };
    match generate(prompt, path).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
