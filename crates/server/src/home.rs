//! The data directory: whose it is, what lies where in it, and how clients find its server.
//!
//! One server at a time works on a directory: it holds a lock on `server.lock` for as long as it
//! lives. It tells clients of the same user where it answers in `server.json`, and holds a lock on
//! that file too, so that whoever reads it can tell at once whether its writer still lives,
//! without touching the first lock: a server that starts never takes a reader for a rival.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rayreel_domain::Code;
use serde::{Deserialize, Serialize};

use crate::clock::Random;

const LOCK: &str = "server.lock";
const ANNOUNCEMENT: &str = "server.json";

/// Nothing that is read from the directory here is longer.
const MAX_FILE: u64 = 4096;

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another server{} works on the data directory {}", process(*pid), path.display())]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("{} can't be the data directory: it, or one above it, is a file", path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} can't be {doing}: {}", path.display(), reason(source))]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{} can't be {doing}: this user may not do that; {owner}", path.display())]
    NotAllowed { path: PathBuf, doing: &'static str, owner: String },
    #[error("{} is damaged; delete it, and the next server makes a new one", path.display())]
    Damaged { path: PathBuf },
}

impl Error {
    pub fn code(&self) -> Code {
        match self {
            Self::InUse { .. } => Code::DataDirectoryInUse,
            Self::NotADirectory { .. } | Self::NotAllowed { .. } => Code::InvalidConfig,
            Self::Io { .. } | Self::Damaged { .. } => Code::StoreUnavailable,
        }
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", process {pid},"))
}

/// What keeps a file from being used, in words.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "what stands above it is a file".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not do that".to_owned(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full".to_owned(),
        _ => error.to_string(),
    }
}

/// Whose a path is, or, if it is not there or can't be seen, the nearest above it.
pub fn owner(path: &Path) -> String {
    let seen = path.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?)));
    let Some((path, metadata)) = seen else {
        return "whose it is can't be seen".to_owned();
    };
    let (owner, path) = (metadata.uid(), path.display());
    if owner == rustix::process::geteuid().as_raw() {
        return format!(
            "{path} is this user's own, but its mode is {:04o}",
            metadata.mode() & 0o7777
        );
    }
    let names = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = names.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(owner)).then_some(name)
    });
    match name {
        Some(name) => format!("{path} belongs to {name}"),
        None => format!("{path} belongs to user {owner}"),
    }
}

/// Names the file and the deed in an I/O error.
fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Error::NotAllowed { owner: owner(&path), path, doing }
            }
            _ => Error::Io { path, doing, source },
        }
    }
}

/// A secret of 256 random bits in hexadecimal.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn new(random: &Random) -> Self {
        Self((0..4).map(|_| format!("{:016x}", random.number())).collect())
    }

    fn parse(text: &str) -> Option<Self> {
        let fits = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a token"))
    }
}

/// What a server tells the clients of its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// Such as `http://127.0.0.1:8088`.
    pub url: String,
    pub token: Token,
    pub worker_token: Token,
    pub pid: u32,
    /// Does it run inside a command, for as long as that takes? Nobody starts it again, so whoever
    /// loses it may take its place.
    pub embedded: bool,
}

/// The server that works on a data directory just now, if one does.
pub fn running(directory: &Path) -> Option<Running> {
    let file = File::open(directory.join(ANNOUNCEMENT)).ok()?;
    // The writer holds this lock until it dies.
    if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let running: Running = serde_json::from_str(&read_bounded(file).ok()?).ok()?;
    // A number: no name server is asked where the tokens go.
    running.url.strip_prefix("http://")?.parse::<SocketAddr>().ok().map(|_| running)
}

fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(text)
}

/// A data directory that belongs to this process until this value is dropped.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    client_token: Token,
    worker_token: Token,
    identity: Token,
    _lock: File,
    /// The last server left its announcement behind: it was killed.
    unclean: bool,
    /// The announcement, locked.
    announced: Option<File>,
}

impl Home {
    /// Takes the directory for this process, or says whose it is. Makes it, for this user alone,
    /// if it does not exist, and its tokens, which outlive the server.
    pub fn open(path: &Path, random: &Random) -> Result<Self, Error> {
        make_directory(path)?;
        let lock = lock(path)?;
        // The lock file may be older than the trouble: see now whether new files can be made.
        let probe = path.join("probe");
        write_private(&probe, b"probe")
            .and_then(|_| fs::remove_file(&probe))
            .map_err(io_error(path, "written to"))?;
        let home = Self {
            client_token: token(&path.join("client_token"), random)?,
            worker_token: token(&path.join("worker_token"), random)?,
            identity: token(&path.join("identity"), random)?,
            unclean: path.join(ANNOUNCEMENT).exists(),
            path: path.to_owned(),
            _lock: lock,
            announced: None,
        };
        for path in [home.artifacts(), home.scratch(), home.logs()] {
            make_directory(&path)?;
        }
        Ok(home)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says what is missing of what the last server has left, if something is: without it, what
    /// was acknowledged would be gone without a word.
    pub fn missing(&self) -> Option<String> {
        let length = |path: &Path| fs::metadata(path).map(|file| file.len()).ok();
        let database = self.database();
        let mut entries = fs::read_dir(self.artifacts()).into_iter().flatten();
        let used = entries.any(|entry| entry.is_ok());
        if used && length(&database).unwrap_or(0) == 0 {
            let artifacts = self.artifacts();
            return Some(format!(
                "it is missing or empty, although there are files of tasks in {}; put it back, or, \
                 to begin anew, move that directory away",
                artifacts.display()
            ));
        }
        let log = self.path.join("tasks.db-wal");
        if self.unclean && length(&database).is_some_and(|bytes| bytes > 0) && !log.exists() {
            return Some(format!(
                "the last server did not stop by itself, and its log, {}, is gone, with tasks that \
                 were acknowledged; put it back, or, to go on without it, delete {}",
                log.display(),
                self.path.join(ANNOUNCEMENT).display()
            ));
        }
        None
    }

    /// Takes the announcement back: the store is about to be closed in good order.
    pub fn withdraw(&mut self) {
        if self.announced.take().is_some() {
            // If it stays, its free lock tells that it is stale.
            _ = fs::remove_file(self.path.join(ANNOUNCEMENT));
        }
    }

    pub fn database(&self) -> PathBuf {
        self.path.join("tasks.db")
    }

    pub fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }

    pub fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// What clients of the same user send.
    pub fn client_token(&self) -> &str {
        self.client_token.as_str()
    }

    /// Tells this directory from those of other servers of the same store. No secret.
    pub fn identity(&self) -> String {
        self.identity.as_str()[..16].to_owned()
    }

    /// What workers send.
    pub fn worker_token(&self) -> &str {
        self.worker_token.as_str()
    }

    /// Tells clients that a server answers at `url`, until this value is dropped.
    pub fn announce(&mut self, url: &str, embedded: bool) -> Result<(), Error> {
        let running = Running {
            url: url.to_owned(),
            token: self.client_token.clone(),
            worker_token: self.worker_token.clone(),
            pid: std::process::id(),
            embedded,
        };
        let path = self.path.join(ANNOUNCEMENT);
        let draft = self.path.join(format!("{ANNOUNCEMENT}.new"));
        let text = serde_json::to_string(&running).expect("texts and a number are JSON");
        let file = write_private(&draft, text.as_bytes()).map_err(io_error(&draft, "written"))?;
        file.lock().map_err(io_error(&draft, "locked"))?;
        fs::rename(&draft, &path).map_err(io_error(&path, "written"))?;
        self.announced = Some(file);
        Ok(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let mut file = private().open(&path).map_err(io_error(&path, "opened"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = read_bounded(file).ok().and_then(|text| text.trim().parse().ok());
            return Err(Error::InUse { path: directory.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(io_error(&path, "locked")(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error(&path, "written"))?;
    Ok(file)
}

/// The token in a file; a new one if there is none yet.
fn token(path: &Path, random: &Random) -> Result<Token, Error> {
    let damaged = || Error::Damaged { path: path.to_owned() };
    match File::open(path).and_then(read_bounded) {
        Ok(text) => Token::parse(text.trim()).ok_or_else(damaged),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = Token::new(random);
            let draft = path.with_extension("new");
            write_private(&draft, token.0.as_bytes())
                .and_then(|_| fs::rename(&draft, path))
                .map_err(io_error(path, "written"))?;
            Ok(token)
        }
        Err(error) => Err(io_error(path, "read")(error)),
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(Error::NotADirectory { path: path.to_owned() })
        }
        Err(error) => Err(io_error(path, "created")(error)),
    }
}

/// Opens files for this user alone.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// Writes a file that is on the disk when this returns.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<File> {
    // An older file of the name may still be open, and locked, elsewhere.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private().open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn open(path: &Path) -> Result<Home, Error> {
        Home::open(path, &Random::from_seed(1))
    }

    fn hold(path: &Path) -> Home {
        open(path).expect("free")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn the_directory_is_made_for_its_user_alone() {
        let parent = directory();
        let path = parent.path().join("share/rayreel");
        let home = hold(&path);
        for made in [path.clone(), home.artifacts(), home.scratch(), home.logs()] {
            assert_eq!(mode(&made), 0o700, "{}", made.display());
        }
    }

    #[test]
    fn a_directory_has_one_server_at_a_time() {
        let parent = directory();
        let first = hold(parent.path());
        let error = open(parent.path()).expect_err("in use");
        assert_eq!(error.code(), Code::DataDirectoryInUse);
        let pid = std::process::id();
        assert!(error.to_string().contains(&format!("process {pid},")), "{error}");
        drop(first);
        hold(parent.path());
    }

    #[test]
    fn tokens_are_secret_and_outlive_the_server() {
        let parent = directory();
        let home = hold(parent.path());
        let tokens = [home.client_token().to_owned(), home.worker_token().to_owned()];
        assert_ne!(tokens[0], tokens[1]);
        assert_eq!(tokens[0].len(), 64);
        for name in ["client_token", "worker_token"] {
            assert_eq!(mode(&parent.path().join(name)), 0o600);
        }
        assert!(!format!("{home:?}").contains(&tokens[0]));
        drop(home);
        let home = Home::open(parent.path(), &Random::from_seed(2)).expect("free");
        assert_eq!(
            [home.client_token(), home.worker_token()],
            tokens.each_ref().map(String::as_str)
        );
    }

    #[test]
    fn a_damaged_token_is_not_used() {
        let parent = directory();
        drop(hold(parent.path()));
        for damage in [&b""[..], b"short", b"\xff\xfe", &[b'g'; 64]] {
            fs::write(parent.path().join("worker_token"), damage).expect("written");
            let error = open(parent.path()).expect_err("damaged");
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("worker_token"), "{error}");
        }
    }

    #[test]
    fn clients_find_the_server_while_it_lives() {
        let parent = directory();
        assert_eq!(running(parent.path()), None);
        let mut home = hold(parent.path());
        assert_eq!(running(parent.path()), None, "not announced yet");
        home.announce("http://127.0.0.1:8088", false).expect("announced");
        let found = running(parent.path()).expect("runs");
        assert_eq!(found.url, "http://127.0.0.1:8088");
        assert_eq!(found.token.as_str(), home.client_token());
        assert_eq!(found.worker_token.as_str(), home.worker_token());
        assert_eq!(found.pid, std::process::id());
        assert!(!found.embedded);
        assert_eq!(mode(&parent.path().join(ANNOUNCEMENT)), 0o600);
        drop(home);
        assert_eq!(running(parent.path()), None);
        assert!(!parent.path().join(ANNOUNCEMENT).exists());
    }

    #[test]
    fn the_word_of_a_dead_server_counts_for_nothing() {
        let parent = directory();
        let announcement = parent.path().join(ANNOUNCEMENT);
        let mut home = hold(parent.path());
        home.announce("http://127.0.0.1:1", true).expect("announced");
        let word = fs::read(&announcement).expect("readable");
        drop(home);
        // Killed, it would have left the file, but not the lock.
        fs::write(&announcement, word).expect("written");
        assert_eq!(running(parent.path()), None);

        let mut next = hold(parent.path());
        next.announce("http://127.0.0.1:2", true).expect("announced");
        assert_eq!(running(parent.path()).expect("runs").url, "http://127.0.0.1:2");
    }

    #[test]
    fn what_the_last_server_has_left_is_missed_if_it_is_gone() {
        let parent = directory();
        let database = parent.path().join("tasks.db");
        let missing = || hold(parent.path()).missing();
        assert_eq!(missing(), None, "a new directory");
        fs::write(&database, b"tasks").expect("written");
        let mut home = hold(parent.path());
        home.announce("http://127.0.0.1:1", false).expect("announced");
        let word = fs::read(parent.path().join(ANNOUNCEMENT)).expect("readable");
        drop(home);
        assert_eq!(missing(), None, "it stopped in good order");

        // Killed, it leaves its announcement, and the log of the database.
        fs::write(parent.path().join(ANNOUNCEMENT), word).expect("written");
        assert!(missing().expect("missed").contains("tasks.db-wal"));
        fs::write(parent.path().join("tasks.db-wal"), b"").expect("written");
        assert_eq!(missing(), None);

        fs::create_dir(parent.path().join("artifacts/task_1")).expect("made");
        fs::write(&database, b"").expect("written");
        assert!(missing().expect("missed").contains("artifacts"));
        fs::remove_file(&database).expect("removed");
        assert!(missing().expect("missed").contains("artifacts"));
    }

    #[test]
    fn an_announcement_that_is_not_one_counts_for_nothing() {
        let parent = directory();
        let path = parent.path().join(ANNOUNCEMENT);
        let token = "0".repeat(64);
        let right = format!(
            r#"{{"url":"http://127.0.0.1:1","token":"{token}","worker_token":"{token}","pid":1,"embedded":true}}"#
        );
        let with = |text: &str| {
            let file = write_private(&path, text.as_bytes()).expect("written");
            file.lock().expect("locked");
            running(parent.path())
        };
        assert!(with(&right).expect("right").embedded);
        assert_eq!(with(&right.replace("127.0.0.1", "video.example")), None);
        assert_eq!(with(&right.replace("http:", "https:")), None);
        assert_eq!(with(&right.replace(&token, "0")), None);
        assert_eq!(with(""), None);
        assert_eq!(with(&format!("{right}{}", " ".repeat(8192))), None);
    }

    #[test]
    fn readers_do_not_keep_a_server_from_starting() {
        let parent = directory();
        let mut home = hold(parent.path());
        home.announce("http://127.0.0.1:1", true).expect("announced");
        let reader = File::open(parent.path().join(ANNOUNCEMENT)).expect("readable");
        drop(home);
        reader.try_lock_shared().expect("free");
        let mut next = hold(parent.path());
        next.announce("http://127.0.0.1:2", true).expect("announced");
        assert!(running(parent.path()).is_some());
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_refused() {
        let parent = directory();
        let file = parent.path().join("file");
        fs::write(&file, "").expect("written");
        for path in [file.clone(), file.join("below")] {
            let error = open(&path).expect_err("a file");
            assert_eq!(error.code(), Code::InvalidConfig);
            assert!(error.to_string().contains("is a file"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_can_not_be_written_is_refused() {
        let parent = directory();
        // Even the superuser can make nothing there.
        let nowhere = Path::new("/proc/self/rayreel");
        assert_eq!(open(nowhere).expect_err("no").code(), Code::StoreUnavailable);

        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o500)).expect("set");
        let superuser = File::create(parent.path().join("try")).is_ok();
        let locked = open(parent.path());
        assert_eq!(locked.is_ok(), superuser);
        if let Err(error) = locked {
            assert_eq!(error.code(), Code::InvalidConfig);
            let words = format!(
                "this user may not do that; {} is this user's own, but its mode is 0500",
                parent.path().display()
            );
            assert!(error.to_string().ends_with(&words), "{error}");
        }
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).expect("set");
    }

    #[test]
    fn who_may_not_is_told_whose_it_is() {
        let error = io_error(Path::new("/proc/1/missing"), "created")(
            io::ErrorKind::PermissionDenied.into(),
        );
        assert_eq!(error.code(), Code::InvalidConfig);
        let text = error.to_string();
        let start = "/proc/1/missing can't be created: this user may not do that; /proc/1 ";
        assert!(text.starts_with(start), "{text}");
        // Whoever is not the superuser sees its name.
        assert!(text.ends_with("belongs to root") || text.contains("this user's own"), "{text}");
    }

    #[test]
    fn trouble_with_the_disk_is_told_in_plain_words() {
        for (kind, words) in [
            (
                io::ErrorKind::ReadOnlyFilesystem,
                "/d can't be written to: the file system is read-only",
            ),
            (io::ErrorKind::StorageFull, "/d can't be written to: the disk is full"),
        ] {
            let error = io_error(Path::new("/d"), "written to")(kind.into());
            assert_eq!(error.to_string(), words);
            assert_eq!(error.code(), Code::StoreUnavailable);
        }
    }
}
