//! Where a result goes: a file that appears whole or not at all, or standard output.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayreel_client::{Client, Variant};
use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::engine::Format;
use rayreel_domain::{Code, TaskId};
use rayreel_server::home;
use tempfile::NamedTempFile;

use crate::failure::{Exit, Failure, INTERRUPTED};
use crate::out::Out;
use crate::session::Session;
use crate::signals::{Drafts, Interrupts};

/// Broken transfers are tried again so often.
const TRIES: u32 = 5;

/// Where to save, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    Stdout,
    /// A file named after the task.
    In(PathBuf),
    File(PathBuf),
}

impl Destination {
    /// Checks what can be checked before anything costs time.
    pub(crate) fn new(output: Option<&Path>, out: Out) -> Result<Self, Failure> {
        let destination = match output {
            None => Self::In(PathBuf::from(".")),
            Some(path) if path == "-" => Self::Stdout,
            Some(path) if path.is_dir() => Self::In(path.to_owned()),
            Some(path) if path.as_os_str().is_empty() => {
                return Err(Failure::value("output", "the name of the output file is empty"));
            }
            Some(path) if path.as_os_str().as_bytes().ends_with(b"/") => {
                return Err(unwritable(path, path, &io::ErrorKind::NotFound.into()));
            }
            Some(path) => Self::File(path.to_owned()),
        };
        match &destination {
            Self::Stdout if out.json => {
                return Err(Failure::value(
                    "output",
                    "`--output -` and `--json` both want standard output",
                ));
            }
            Self::Stdout if io::stdout().is_terminal() => {
                return Err(Failure::value("output", "a terminal can't show the file")
                    .helped("Send standard output elsewhere: `… -o - | mpv -`, `… -o - >file`."));
            }
            Self::Stdout => {}
            Self::In(directory) => try_folder(directory, directory)?,
            // Through a link, it is the file behind it that is replaced.
            Self::File(path) => match fs::canonicalize(path) {
                Ok(real) if real.is_file() => try_folder(path, &folder(&real))?,
                // To open a pipe is to use it.
                Ok(_) => {}
                Err(_) => try_folder(path, &folder(path))?,
            },
        }
        Ok(destination)
    }

    /// The format that the file's name asks for.
    pub(crate) fn format(&self) -> Result<Option<Format>, Failure> {
        let Self::File(path) = self else {
            return Ok(None);
        };
        let Some(extension) = path.extension() else {
            return Ok(None);
        };
        match extension.to_string_lossy().to_ascii_lowercase().as_str() {
            "mp4" => Ok(Some(Format::Mp4)),
            "png" => Ok(Some(Format::Png)),
            "jpg" | "jpeg" => Ok(Some(Format::Jpeg)),
            "webp" => Ok(Some(Format::Webp)),
            other => Err(Failure::value(
                "output",
                format!(
                    "`{}`: a result is .mp4, .png, .jpg or .webp, not .{other}; with --format, the name \
                     does not matter",
                    path.display()
                ),
            )),
        }
    }

    fn path(&self, id: TaskId, suffix: &str, media_type: &str) -> Option<PathBuf> {
        match self {
            Self::Stdout => None,
            Self::File(path) => Some(path.clone()),
            Self::In(directory) => {
                let extension = match media_type {
                    "video/mp4" => "mp4",
                    "video/webm" => "webm",
                    "image/png" => "png",
                    "image/jpeg" => "jpg",
                    "image/webp" => "webp",
                    _ => "bin",
                };
                let name = format!("{id}{suffix}.{extension}");
                let here = directory == Path::new(".");
                Some(if here { PathBuf::from(name) } else { directory.join(name) })
            }
        }
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Can `path` be written, which takes a new file in its folder? Leaves nothing behind.
fn try_folder(path: &Path, folder: &Path) -> Result<(), Failure> {
    tempfile::tempfile_in(folder).map(drop).map_err(|error| unwritable(path, folder, &error))
}

/// A file beside the one that it will become.
fn draft(path: &Path) -> Result<NamedTempFile, Failure> {
    let folder = folder(path);
    tempfile::Builder::new()
        .prefix(".rayreel-")
        .suffix(".part")
        // As any other file: the umask decides.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(&folder)
        .map_err(|error| unwritable(path, &folder, &error))
}

fn open_device(path: &Path) -> Result<File, Failure> {
    OpenOptions::new().write(true).open(path).map_err(|error| unwritable(path, path, &error))
}

/// Names the file that was asked for, whatever the one is called that could not be written, and
/// what is wrong with its folder.
fn unwritable(path: &Path, folder: &Path, error: &io::Error) -> Failure {
    let at = folder.display();
    let (why, help) = match error.kind() {
        io::ErrorKind::NotFound => {
            (format!("there is no folder {at}"), "Make the folder first, or name another.")
        }
        io::ErrorKind::NotADirectory => {
            (format!("{at} is no folder"), "Name a folder that exists.")
        }
        io::ErrorKind::PermissionDenied => (
            format!("this user may not write there; {}", home::owner(folder)),
            "Name a place where you may write.",
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (home::reason(error), "Free space, or name another place.")
        }
        _ => (home::reason(error), "Name another place."),
    };
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::StorageFull,
        _ => Code::InvalidValue,
    };
    let message = format!("{} can't be written: {why}", path.display());
    Failure { code, ..Failure::value("output", message) }.helped(help)
}

/// Gets the file of a task that has succeeded, and says where it is; none is standard output. The
/// next Ctrl-C leaves.
pub(crate) async fn save(
    session: &mut Session,
    task: &TaskBody,
    variant: Variant,
    destination: &Destination,
    interrupts: &Interrupts,
    out: Out,
) -> Result<Option<PathBuf>, Exit> {
    tokio::select! {
        saved = transfer(session, task, variant, destination, &interrupts.drafts, out) => saved,
        // A second one does so by itself.
        () = interrupts.first(), if !interrupts.first.is_cancelled() => {
            out.note(&format!("left; {0} has its file still: rayreel download {0}", task.id));
            Err(Exit::Silent(INTERRUPTED))
        }
    }
}

async fn transfer(
    session: &mut Session,
    task: &TaskBody,
    variant: Variant,
    destination: &Destination,
    drafts: &Drafts,
    out: Out,
) -> Result<Option<PathBuf>, Exit> {
    let id: TaskId = task
        .id
        .parse()
        .map_err(|_| Failure::new(Code::Internal, format!("`{}` is not a task id", task.id)))?;
    let result = task.result.as_ref().filter(|_| variant == Variant::Main);
    let sha256 = result.map(|result| result.sha256.as_str());
    let mut tries = 1;
    loop {
        let transfer = Transfer { id, variant, sha256, destination, drafts, out };
        let client = session.client().await?;
        match transfer.run(&client).await {
            Err(Exit::Failed(failure))
                if failure.is_lost() && tries < TRIES && *destination != Destination::Stdout =>
            {
                tries += 1;
                session.lost();
            }
            saved => return saved,
        }
    }
}

struct Transfer<'a> {
    id: TaskId,
    variant: Variant,
    sha256: Option<&'a str>,
    destination: &'a Destination,
    drafts: &'a Drafts,
    out: Out,
}

impl Transfer<'_> {
    async fn run(&self, client: &Client) -> Result<Option<PathBuf>, Exit> {
        let mut content = client.content(self.id, self.variant).await?;
        if let Some(sha256) = self.sha256 {
            content = content.expect(sha256);
        }
        let suffix = if self.variant == Variant::Thumbnail { "-thumbnail" } else { "" };
        let path = self.destination.path(self.id, suffix, content.media_type());
        let mut sink = match &path {
            None => Sink::Stdout(self.out),
            Some(path) => Sink::open(path, self.drafts)?,
        };
        while let Some(piece) = content.chunk().await? {
            sink.write(&piece)?;
        }
        sink.finish()?;
        Ok(path)
    }
}

/// What bytes are written to.
enum Sink {
    Stdout(Out),
    Draft(Draft),
    /// Not a regular file: there is nothing to replace.
    Device(File, PathBuf),
}

/// A file until it has its name.
struct Draft {
    file: NamedTempFile,
    path: PathBuf,
    drafts: Drafts,
}

impl Sink {
    fn open(path: &Path, drafts: &Drafts) -> Result<Self, Failure> {
        let path = match fs::canonicalize(path) {
            Ok(real) if !real.is_file() => return Ok(Self::Device(open_device(path)?, real)),
            Ok(real) => real,
            Err(_) => path.to_owned(),
        };
        let file = drafts.make(|| draft(&path), NamedTempFile::path)?;
        Ok(Self::Draft(Draft { file, path, drafts: drafts.clone() }))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Exit> {
        let (written, path) = match self {
            Self::Stdout(out) => return out.raw(bytes),
            // Its own errors would name it.
            Self::Draft(draft) => (draft.file.as_file_mut().write_all(bytes), &draft.path),
            Self::Device(file, path) => (file.write_all(bytes), &*path),
        };
        Ok(written.map_err(|error| unwritable(path, &folder(path), &error))?)
    }

    fn finish(self) -> Result<(), Failure> {
        let Self::Draft(Draft { file, path, drafts }) = self else {
            return Ok(());
        };
        let persisted = file.persist(&path);
        drafts.done();
        persisted.map(drop).map_err(|error| unwritable(&path, &folder(&path), &error.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(output: Option<&Path>) -> Result<Destination, Failure> {
        Destination::new(output, Out::new(false, true))
    }

    fn open(path: &Path) -> Result<Sink, Failure> {
        Sink::open(path, &Drafts::default())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect()
    }

    #[test]
    fn the_name_of_the_file_says_the_format() {
        let directory = tempfile::tempdir().expect("a directory");
        let format =
            |name: &str| new(Some(&directory.path().join(name))).expect("writable").format();
        assert_eq!(format("x.png"), Ok(Some(Format::Png)));
        assert_eq!(format("x.MP4"), Ok(Some(Format::Mp4)));
        for name in ["x.jpg", "x.JPEG"] {
            assert_eq!(format(name), Ok(Some(Format::Jpeg)));
        }
        assert_eq!(format("x.webp"), Ok(Some(Format::Webp)));
        assert_eq!(format("x"), Ok(None));
        let failure = format("x.gif").expect_err("not ours");
        assert_eq!(failure.param.as_deref(), Some("output"));
        assert!(names(directory.path()).is_empty(), "the check leaves nothing behind");
    }

    #[test]
    fn a_directory_gets_a_file_named_after_the_task() {
        let directory = tempfile::tempdir().expect("a directory");
        let id: TaskId = format!("task_{}", "0".repeat(32)).parse().expect("an id");
        let destination = new(Some(directory.path())).expect("writable");
        let expected = directory.path().join(format!("{id}-thumbnail.jpg"));
        assert_eq!(destination.path(id, "-thumbnail", "image/jpeg"), Some(expected));
        let here = new(None).expect("writable");
        assert_eq!(here.path(id, "", "video/mp4"), Some(PathBuf::from(format!("{id}.mp4"))));
    }

    #[test]
    fn a_place_that_can_not_be_written_is_refused_before_anything_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path().display();
        fs::write(directory.path().join("file"), "").expect("written");
        for (name, why) in [
            (
                "missing/x.mp4",
                format!("{at}/missing/x.mp4 can't be written: there is no folder {at}/missing"),
            ),
            ("file/x.mp4", format!("{at}/file/x.mp4 can't be written: {at}/file is no folder")),
            (
                "missing/",
                format!("{at}/missing/ can't be written: there is no folder {at}/missing/"),
            ),
        ] {
            let failure = new(Some(&directory.path().join(name))).expect_err(name);
            assert_eq!((failure.code, failure.message), (Code::InvalidValue, why));
        }
        assert_eq!(new(Some(Path::new(""))).expect_err("empty").param.as_deref(), Some("output"));
        let both = Destination::new(Some(Path::new("-")), Out::new(true, false));
        assert_eq!(both.expect_err("both").param.as_deref(), Some("output"));
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.mp4");
        fs::write(&path, "old").expect("written");
        let mut broken = open(&path).expect("opens");
        broken.write(b"half").expect("written");
        drop(broken);
        assert_eq!(fs::read(&path).expect("there"), b"old");
        assert_eq!(names(directory.path()), ["x.mp4"]);

        let mut whole = open(&path).expect("opens");
        whole.write(b"new").expect("written");
        whole.finish().expect("renamed");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        assert_eq!(names(directory.path()), ["x.mp4"]);
    }

    #[test]
    fn what_can_not_be_written_is_named_as_it_was_asked_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gone/x.mp4");
        let Err(failure) = open(&path) else { panic!("there is no folder") };
        assert!(failure.message.starts_with(&path.display().to_string()), "{}", failure.message);
        assert!(!failure.message.contains(".part"), "{}", failure.message);

        let mut full = open(Path::new("/dev/full")).expect("opens");
        let Err(Exit::Failed(failure)) = full.write(b"x") else { panic!("it is full") };
        assert_eq!(failure.code, Code::StorageFull);
        assert_eq!(failure.message, "/dev/full can't be written: the disk is full");
    }

    #[test]
    fn a_link_stays_and_a_device_is_written_through() {
        let directory = tempfile::tempdir().expect("a directory");
        let (real, link) = (directory.path().join("real.mp4"), directory.path().join("link.mp4"));
        fs::write(&real, "old").expect("written");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        let mut sink = open(&link).expect("opens");
        sink.write(b"new").expect("written");
        sink.finish().expect("renamed");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read(&real).expect("there"), b"new");

        let null = Path::new("/dev/null");
        let mut sink = open(null).expect("opens");
        sink.write(b"gone").expect("written");
        sink.finish().expect("nothing to do");
        assert!(!null.is_file(), "still a device");
    }
}
