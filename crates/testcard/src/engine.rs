//! The conversation with the worker, and the work between its messages.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayreel_domain::testcard::Settings;
use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, EngineRequest, Format, FromEngine, Generate, Load,
    OutputFile, PROTOCOL, Role, ToEngine,
};

use crate::canvas::Canvas;
use crate::card::Card;
use crate::inbox::{Heard, Inbox};
use crate::still;
use crate::video::{Video, VideoError};

const NAME: &str = "testcard";

const SIDE: RangeInclusive<u32> = 64..=1920;
const MAX_AREA: u32 = 1920 * 1088;
const FRAMES: RangeInclusive<u32> = 1..=321;
const FPS: RangeInclusive<u32> = 1..=60;
const STEPS: RangeInclusive<u32> = 1..=100;

/// Widest thumbnail, in pixels.
const THUMBNAIL_WIDTH: usize = 320;

/// About this often a generation reports while it encodes.
const ENCODE_REPORTS: u32 = 10;

/// Serves one worker until it says `exit` or hangs up. An error means that the worker broke the
/// protocol or that it can't be heard or answered any more.
///
/// `input` is read by a thread that outlives this call if the worker hasn't hung up: a process
/// gives `BufReader::new(stdin())` and ends when this returns.
pub fn run(input: impl BufRead + Send + 'static, output: impl Write) -> io::Result<()> {
    let mut engine = Engine { inbox: Inbox::open(input)?, output, settings: None };
    while let Some(message) = engine.inbox.next()? {
        match message {
            ToEngine::Load(load) => engine.load(load)?,
            ToEngine::Generate(generate) => match engine.generate(generate) {
                Err(Halt::Left) => break,
                Err(Halt::Broken(error)) => return Err(error),
                Ok(()) => {}
            },
            // It came when its generation had just ended.
            ToEngine::Cancel { .. } => {}
            ToEngine::Exit => break,
        }
    }
    Ok(())
}

/// Why the engine ends.
enum Halt {
    /// The worker said so, or is gone.
    Left,
    Broken(io::Error),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Halt {
        Halt::Broken(error)
    }
}

/// Why a generation ends without files.
enum Failure {
    Halt(Halt),
    Cancelled,
    /// What is wrong with the request.
    Invalid(String),
    /// What could not be done.
    Failed(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Halt(Halt::Broken(error))
    }
}

impl From<VideoError> for Failure {
    fn from(error: VideoError) -> Failure {
        Failure::Failed(error.to_string())
    }
}

impl From<still::WriteError> for Failure {
    fn from(error: still::WriteError) -> Failure {
        Failure::Failed(format!("writing a picture: {error}"))
    }
}

struct Engine<W> {
    inbox: Inbox,
    output: W,
    /// None until `load`.
    settings: Option<Settings>,
}

impl<W: Write> Engine<W> {
    fn say(&mut self, message: &FromEngine) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.output.write_all(&line)?;
        self.output.flush()
    }

    fn say_error(
        &mut self,
        id: Option<&str>,
        code: EngineErrorCode,
        message: impl Into<String>,
    ) -> io::Result<()> {
        self.say(&FromEngine::Error(EngineError {
            id: id.map(String::from),
            code,
            message: message.into(),
            // What failed here failed for want of disk space or the like.
            retryable: code == EngineErrorCode::Failed,
        }))
    }

    fn load(&mut self, load: Load) -> io::Result<()> {
        let settings = if self.settings.is_some() {
            Err("a model is loaded already".to_owned())
        } else if load.protocol != PROTOCOL {
            Err(format!(
                "the worker speaks version {} of the engine protocol, {NAME} speaks version {PROTOCOL}",
                load.protocol
            ))
        } else {
            Settings::read(&load.settings).map_err(|wrong| wrong.to_string())
        };
        match settings {
            Ok(settings) => {
                self.settings = Some(settings);
                self.say(&FromEngine::Ready {
                    protocol: PROTOCOL,
                    engine: NAME.into(),
                    version: env!("CARGO_PKG_VERSION").into(),
                })
            }
            Err(message) => self.say_error(None, EngineErrorCode::LoadFailed, message),
        }
    }

    fn generate(&mut self, generate: Generate) -> Result<(), Halt> {
        let Generate { id, output_dir, request } = generate;
        let mut files = Files::new(output_dir.into());
        match self.make(&id, &request, &mut files) {
            Ok(metrics) => {
                let files = files.keep();
                self.say(&FromEngine::Done(Done { id, files, metrics, test_pattern: true }))?;
            }
            Err(failure) => {
                // Gone before the worker hears that there are none.
                drop(files);
                let id = Some(id.as_str());
                match failure {
                    Failure::Halt(halt) => return Err(halt),
                    Failure::Cancelled => {
                        self.say_error(id, EngineErrorCode::Cancelled, "cancelled")?;
                    }
                    Failure::Invalid(message) => {
                        self.say_error(id, EngineErrorCode::InvalidRequest, message)?;
                    }
                    Failure::Failed(message) => {
                        self.say_error(id, EngineErrorCode::Failed, message)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn make(
        &mut self,
        id: &str,
        request: &EngineRequest,
        files: &mut Files,
    ) -> Result<BTreeMap<String, f64>, Failure> {
        let Some(Settings { step_ms }) = self.settings else {
            return Err(Failure::Failed("no model is loaded".into()));
        };
        check(request).map_err(Failure::Invalid)?;
        files.check().map_err(Failure::Failed)?;
        let image = picture("image", request.image.as_ref())?;
        let last_image = picture("last_image", request.last_image.as_ref())?;
        let card = Card::new(request, image.as_ref(), last_image.as_ref());

        let started = Instant::now();
        self.denoise(id, request.steps, Duration::from_millis(step_ms))?;
        let denoised = Instant::now();
        match request.format {
            Format::Mp4 => self.encode_video(id, request, card, files)?,
            Format::Png | Format::Jpeg | Format::Webp => {
                self.encode_still(id, request, card, files)?;
            }
        }
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        Ok(BTreeMap::from([
            ("denoise_ms".to_owned(), millis(denoised - started)),
            ("encode_ms".to_owned(), millis(denoised.elapsed())),
        ]))
    }

    /// Waits as long as the steps take. Every deadline counts from the start, so that lateness
    /// doesn't add up.
    fn denoise(&mut self, id: &str, steps: u32, step: Duration) -> Result<(), Failure> {
        let start = Instant::now();
        self.report(id, "denoise", 0, steps)?;
        for done in 1..=steps {
            self.listen(id, start + step * done)?;
            self.report(id, "denoise", done, steps)?;
        }
        Ok(())
    }

    fn encode_video(
        &mut self,
        id: &str,
        request: &EngineRequest,
        mut card: Card,
        files: &mut Files,
    ) -> Result<(), Failure> {
        let &EngineRequest { width, height, frames, fps, .. } = request;
        let mut canvas = Canvas::new(width as usize, height as usize);
        let path = files.add(OutputFile {
            path: "video.mp4".into(),
            role: Role::Video,
            media_type: Format::Mp4.media_type().into(),
            width,
            height,
            frames,
            fps,
        });
        let mut video = Video::create(&path, width, height, fps)?;
        let mut thumbnail = None;
        for index in 0..frames {
            self.listen(id, Instant::now())?;
            card.paint(index, &mut canvas);
            video.push(&canvas)?;
            if index == 0 {
                thumbnail = Some(still::thumbnail(&canvas, THUMBNAIL_WIDTH));
            }
            let reports = |done: u32| done * ENCODE_REPORTS / frames;
            if reports(index + 1) > reports(index) {
                self.report(id, "encode", index + 1, frames)?;
            }
        }
        video.finish()?;
        if let Some(thumbnail) = thumbnail {
            write_still(files, "thumbnail", Role::Thumbnail, &thumbnail, Format::Png)?;
        }
        Ok(())
    }

    fn encode_still(
        &mut self,
        id: &str,
        request: &EngineRequest,
        mut card: Card,
        files: &mut Files,
    ) -> Result<(), Failure> {
        let mut canvas = Canvas::new(request.width as usize, request.height as usize);
        self.listen(id, Instant::now())?;
        card.paint(0, &mut canvas);
        write_still(files, "image", Role::Image, &canvas, request.format)?;
        self.report(id, "encode", 1, 1)?;
        Ok(())
    }

    fn report(&mut self, id: &str, stage: &str, step: u32, steps: u32) -> io::Result<()> {
        self.say(&FromEngine::Progress { id: id.into(), step, steps, stage: stage.into() })
    }

    /// Hears out the worker until the deadline, at least all that it has said so far.
    fn listen(&mut self, id: &str, deadline: Instant) -> Result<(), Failure> {
        loop {
            match self.inbox.next_until(deadline)? {
                Heard::Nothing => return Ok(()),
                Heard::HungUp | Heard::Message(ToEngine::Exit) => {
                    return Err(Failure::Halt(Halt::Left));
                }
                Heard::Message(ToEngine::Cancel { id: cancelled }) => {
                    if cancelled == id {
                        return Err(Failure::Cancelled);
                    }
                }
                Heard::Message(ToEngine::Load(load)) => self.load(load)?,
                Heard::Message(ToEngine::Generate(other)) => {
                    let message = "the engine is at work on another generation";
                    self.say_error(Some(&other.id), EngineErrorCode::Failed, message)?;
                }
            }
        }
    }
}

/// Reads the image that a field of the request names.
fn picture(field: &str, path: Option<&String>) -> Result<Option<Canvas>, Failure> {
    let read = path.map(|path| still::read(Path::new(path))).transpose();
    read.map_err(|error| Failure::Invalid(format!("{field} {error}")))
}

/// Checks again what the server has checked: an engine doesn't rely on its callers.
fn check(request: &EngineRequest) -> Result<(), String> {
    let &EngineRequest { width, height, frames, fps, steps, .. } = request;
    for (name, value, range) in [
        ("width", width, SIDE),
        ("height", height, SIDE),
        ("frames", frames, FRAMES),
        ("fps", fps, FPS),
        ("steps", steps, STEPS),
    ] {
        if !range.contains(&value) {
            return Err(format!("{name} is {} to {}, not {value}", range.start(), range.end()));
        }
    }
    if width % 2 != 0 || height % 2 != 0 {
        return Err(format!("width and height are even, not {width} and {height}"));
    }
    if width * height > MAX_AREA {
        return Err(format!("{width} by {height} is more than {MAX_AREA} pixels"));
    }
    if frames % 4 != 1 {
        return Err(format!("frames is 4n+1, not {frames}"));
    }
    if request.last_image.is_some() && (request.image.is_none() || frames == 1) {
        return Err("last_image needs an image, and more than 1 frame".to_owned());
    }
    if request.format.is_still() && frames != 1 {
        return Err(format!("frames of a still is 1, not {frames}"));
    }
    Ok(())
}

fn write_still(
    files: &mut Files,
    name: &str,
    role: Role,
    picture: &Canvas,
    format: Format,
) -> Result<(), still::WriteError> {
    let path = files.add(OutputFile {
        path: format!("{name}.{}", format.extension()),
        role,
        media_type: format.media_type().into(),
        width: picture.width() as u32,
        height: picture.height() as u32,
        frames: 1,
        fps: 0,
    });
    still::write(&path, picture, format)
}

/// The files of one generation, removed again unless they are kept.
struct Files {
    directory: PathBuf,
    files: Vec<OutputFile>,
}

impl Files {
    fn new(directory: PathBuf) -> Files {
        Files { directory, files: Vec::new() }
    }

    fn check(&self) -> Result<(), String> {
        if !self.directory.is_absolute() || !self.directory.is_dir() {
            let directory = self.directory.display();
            return Err(format!("output_dir is no absolute path of a directory: {directory}"));
        }
        // What is removed after a failure must be ours.
        match fs::read_dir(&self.directory).map(|mut entries| entries.next()) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err("output_dir is not empty".into()),
            Err(error) => Err(format!("output_dir can't be read: {error}")),
        }
    }

    /// Notes a file that is about to be written, and says where.
    fn add(&mut self, file: OutputFile) -> PathBuf {
        let path = self.directory.join(&file.path);
        self.files.push(file);
        path
    }

    fn keep(mut self) -> Vec<OutputFile> {
        std::mem::take(&mut self.files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.files {
            // A file that could not be created isn't there to be removed.
            let _ = fs::remove_file(self.directory.join(&file.path));
        }
    }
}
