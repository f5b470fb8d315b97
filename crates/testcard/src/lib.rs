//! The built-in engine `testcard`: an honest test card, drawn and encoded without a model.
//!
//! It speaks the engine protocol of [`rayreel_domain::wire::engine`] like any other engine, works
//! in denoising-like steps of a settable length, so that progress, cancelling and timing are real,
//! and says on the picture and in every result that no model ran. The same request and seed give
//! the same bytes on the same machine and build.
//!
//! Its way to H.264 in MP4 is also there for engines whose programs write something else.

mod canvas;
mod card;
mod engine;
mod font;
mod inbox;
mod jpegs;
mod motion;
mod still;
mod video;

pub use engine::run;
pub use jpegs::{FromJpegsError, mp4_from_jpegs};
