//! Calls to what tenants name, over real sockets, with a resolver that says what the test wants.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue};
use rayreel_server::outbound::{Client, Error, Options, Resolver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// DNS as the test wants it: each lookup of a name takes its next answer; the last one stays.
#[derive(Default)]
pub(crate) struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    pub(crate) lookups: AtomicUsize,
}

impl Names {
    pub(crate) fn of(names: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let address = |text: &&str| text.parse().unwrap();
        let answers = names.iter().map(|(name, answers)| {
            let answers = answers.iter().map(|answer| answer.iter().map(address).collect());
            ((*name).to_owned(), answers.rev().collect())
        });
        Arc::new(Self { answers: Mutex::new(answers.collect()), lookups: AtomicUsize::new(0) })
    }
}

#[async_trait::async_trait]
impl Resolver for Names {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let left = answers.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        let next = if left.len() > 1 { left.pop() } else { left.last().cloned() };
        Ok(next.unwrap())
    }
}

/// Something that listens, answers each connection with the same bytes, and notes what it was sent.
pub(crate) struct Peer {
    pub(crate) port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Peer {
    pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        Self::start(answer.into(), None, false).await
    }

    /// Says no more after this, but does not close.
    pub(crate) async fn stalling(answer: &str) -> Self {
        Self::start(answer.into(), None, true).await
    }

    async fn start(answer: Vec<u8>, tls: Option<tokio_rustls::TlsAcceptor>, stall: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (answer, notes) = (Arc::new(answer), Arc::clone(&heard));
        let serving = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (tls, answer) = (tls.clone(), Arc::clone(&answer));
                let notes = Arc::clone(&notes);
                talks.spawn(async move {
                    match tls {
                        None => talk(socket, &answer, &notes, stall).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(stream) => talk(stream, &answer, &notes, stall).await,
                            Err(_) => notes.lock().unwrap().push("no TLS".to_owned()),
                        },
                    }
                });
            }
        });
        Self { port, heard, serving }
    }

    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

async fn talk<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    mut stream: S,
    answer: &[u8],
    notes: &Mutex<Vec<String>>,
    stall: bool,
) {
    let mut bytes = Vec::new();
    let whole = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        (body.len() >= length.map_or(0, |length| length.parse().unwrap())).then_some(text.clone())
    };
    let request = loop {
        if let Some(request) = whole(&bytes) {
            break request;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    notes.lock().unwrap().push(request);
    // The caller may have enough before all is said.
    let _ = stream.write_all(answer).await;
    if stall {
        let _ = stream.read_buf(&mut bytes).await;
    }
    let _ = stream.shutdown().await;
}

pub(crate) fn ok(body: &[u8]) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: ";
    [format!("{head}{}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

fn options(allow: &[&str]) -> Options {
    Options {
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        ports: vec![443],
        connect: Duration::from_secs(5),
        whole: Duration::from_secs(20),
        certificates: None,
    }
}

fn client(allow: &[&str], names: Arc<Names>) -> Client {
    Client::new(options(allow), names)
}

async fn get(client: &Client, url: &str) -> Result<Bytes, Error> {
    client.get(url, 1_000).await.map(|fetched| fetched.bytes)
}

fn why(answer: Result<Bytes, Error>) -> String {
    match answer {
        Err(error @ Error::Refused(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_is_fetched_from_where_the_operator_allows_it() {
    let peer = Peer::answering(ok(b"picture")).await;
    let client = client(&["127.0.0.1"], Names::of(&[]));
    let url = format!("http://127.0.0.1:{}/a?b=c#d", peer.port);
    let fetched = client.get(&url, 7).await.unwrap();
    assert_eq!(
        (&*fetched.bytes, fetched.content_type.as_deref()),
        (&b"picture"[..], Some("image/png"))
    );
    let request = &peer.heard()[0];
    assert!(request.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("accept-encoding: identity\r\n"), "{request}");
    for never in ["cookie", "authorization", "referer"] {
        assert!(!request.to_lowercase().contains(never), "{request}");
    }
}

#[tokio::test]
async fn nothing_inside_is_called_unless_it_is_allowed() {
    let peer = Peer::answering(ok(b"secret")).await;
    let names = Names::of(&[
        ("localhost", &[&["127.0.0.1", "::1"]]),
        ("inside.example", &[&["127.0.0.1"]]),
        ("mapped.example", &[&["::ffff:127.0.0.1"]]),
        ("mixed.example", &[&["1.1.1.1", "127.0.0.1"]]),
        ("nowhere.example", &[&[]]),
    ]);
    // Another address of this machine is allowed: that must open nothing else.
    let client = client(&["127.0.0.9"], names);
    for host in [
        "localhost",
        "inside.example",
        "mapped.example",
        "mixed.example",
        "nowhere.example",
        "missing.example",
    ] {
        // The same of every name, so that it tells nothing of where one leads.
        let told = format!("`{host}` does not lead to an address that may be called");
        let bare = "; without TLS, or on another port, only what the operator allows is called: use \
                    https://";
        let bare_url = format!("http://{host}:{}/", peer.port);
        assert_eq!(why(get(&client, &format!("https://{host}/")).await), told);
        assert_eq!(why(get(&client, &bare_url).await), format!("{told}{bare}"));
    }
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]", "0"] {
        let url = format!("http://{host}:{}/", peer.port);
        assert!(why(get(&client, &url).await).contains("is not a public address"), "{url}");
    }
    assert_eq!(peer.heard(), [""; 0]);
}

#[tokio::test]
async fn the_connection_is_made_to_the_address_that_was_checked() {
    let peer = Peer::answering(ok(b"picture")).await;
    // Whoever asked twice for one call would be led astray.
    let names = Names::of(&[("turns.example", &[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"]])]);
    let client = client(&["127.0.0.1"], Arc::clone(&names));
    let url = format!("http://turns.example:{}/", peer.port);
    assert_eq!(get(&client, &url).await, Ok(Bytes::from("picture")));
    assert_eq!(names.lookups.load(Ordering::SeqCst), 1);
    assert!(why(get(&client, &url).await).contains("turns.example"));
    // And back again: each call is checked for itself, on a connection of its own.
    assert_eq!(get(&client, &url).await, Ok(Bytes::from("picture")));
    assert_eq!((names.lookups.load(Ordering::SeqCst), peer.heard().len()), (3, 2));
    assert!(peer.heard()[0].contains(&format!("host: turns.example:{}", peer.port)));
}

#[tokio::test]
async fn redirects_are_followed_three_times_and_each_is_checked() {
    let last = Peer::answering(ok(b"picture")).await;
    let mut url = format!("http://127.0.0.1:{}/", last.port);
    let client = client(&["127.0.0.1"], Names::of(&[("inside.example", &[&["127.0.0.2"]])]));
    let mut hops = Vec::new();
    for _ in 0..3 {
        let hop = Peer::answering(redirect(&url)).await;
        url = format!("http://127.0.0.1:{}/", hop.port);
        hops.push(hop);
    }
    assert_eq!(get(&client, &url).await, Ok(Bytes::from("picture")));
    let fourth = Peer::answering(redirect(&url)).await;
    let url = format!("http://127.0.0.1:{}/", fourth.port);
    assert!(why(get(&client, &url).await).contains("once more after 3 redirects"));
    assert_eq!(last.heard().len(), 1);

    for (location, expected) in [
        (format!("http://127.0.0.2:{}/", last.port), "is not a public address"),
        (format!("http://inside.example:{}/", last.port), "`inside.example` does not lead"),
        ("http://[::1]/".to_owned(), "is not a public address"),
        ("file:///etc/passwd".to_owned(), "`file:` URLs"),
        ("https://a:b@1.1.1.1/".to_owned(), "user name"),
        ("https://1.1.1.1:22/".to_owned(), "port 22"),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "is not a public address"),
        ("https://[".to_owned(), "no URL"),
    ] {
        let hop = Peer::answering(redirect(&location)).await;
        let found = why(get(&client, &format!("http://127.0.0.1:{}/", hop.port)).await);
        assert!(found.contains(expected), "{location}: {found}");
    }
    assert_eq!(last.heard().len(), 1);
}

#[tokio::test]
async fn what_is_too_large_is_not_read_to_its_end() {
    let client = client(&["127.0.0.1"], Names::of(&[]));
    let too_large = Error::TooLarge { host: "127.0.0.1".to_owned(), limit: 1_000 };
    let announced = Peer::stalling("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n").await;
    let url = |peer: &Peer| format!("http://127.0.0.1:{}/", peer.port);
    assert_eq!(get(&client, &url(&announced)).await, Err(too_large.clone()));
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1_001));
    let endless = Peer::stalling(&endless).await;
    assert_eq!(get(&client, &url(&endless)).await, Err(too_large.clone()));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n";
    let chunked = Peer::stalling(&format!("{chunked}{}", "x".repeat(1_001))).await;
    assert_eq!(get(&client, &url(&chunked)).await, Err(too_large));
}

#[tokio::test]
async fn nothing_is_unpacked() {
    let client = client(&["127.0.0.1"], Names::of(&[]));
    for coding in ["gzip", "br", "zstd", "deflate", "gzip, gzip"] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\n");
        let peer = Peer::answering(format!("{head}content-length: 4\r\n\r\nbomb")).await;
        let answer = get(&client, &format!("http://127.0.0.1:{}/", peer.port)).await;
        assert!(answer.unwrap_err().to_string().contains("compresses"), "{coding}");
    }
}

#[tokio::test]
async fn a_host_that_drips_is_given_up() {
    let silent = Peer::stalling("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    let mut options = options(&["127.0.0.1"]);
    options.whole = Duration::from_millis(300);
    let client = Client::new(options, Names::of(&[]));
    let answer = get(&client, &format!("http://127.0.0.1:{}/", silent.port)).await;
    assert_eq!(answer, Err(Error::TimedOut { host: "127.0.0.1".to_owned(), seconds: 1 }));
}

#[tokio::test]
async fn what_is_no_answer_is_told_without_what_was_said() {
    let client = client(&["127.0.0.1"], Names::of(&[]));
    for (answer, expected) in [
        ("SSH-2.0-OpenSSH_9.6\r\n", "does not answer in HTTP"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "stopped in the middle"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\n\r\nsecret", "status 404"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", "status 304"),
        ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", "status 302"),
    ] {
        let peer = Peer::answering(answer).await;
        let url = format!("http://127.0.0.1:{}/", peer.port);
        let message = get(&client, &url).await.unwrap_err().to_string();
        assert!(message.contains(expected), "{answer}: {message}");
        assert!(!message.contains("secret") && !message.contains("SSH"), "{message}");
    }
    let gone = Peer::answering("").await.port;
    let message = get(&client, &format!("http://127.0.0.1:{gone}/")).await.unwrap_err();
    assert_eq!(message.to_string(), "`127.0.0.1` could not be reached: no connection");
}

#[tokio::test]
async fn a_post_is_answered_with_its_status_and_the_first_bytes() {
    let body = "y".repeat(10_000);
    let peer = Peer::answering(format!("HTTP/1.1 500 No\r\nretry-after: 7\r\n\r\n{body}")).await;
    let client = client(&["127.0.0.1"], Names::of(&[]));
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", HeaderValue::from_static("msg_1"));
    let url = format!("http://127.0.0.1:{}/hook", peer.port);
    let answer = client.post(&url, headers, Bytes::from("{}")).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (500, 4_096));
    assert_eq!(answer.headers["retry-after"], "7");
    let request = &peer.heard()[0];
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("webhook-id: msg_1\r\n") && request.ends_with("\r\n\r\n{}"));
}

#[tokio::test]
async fn a_post_follows_nobody() {
    let other = Peer::answering(ok(b"")).await;
    let first = Peer::answering(redirect(&format!("http://127.0.0.1:{}/", other.port))).await;
    let client = client(&["127.0.0.1"], Names::of(&[]));
    let url = format!("http://127.0.0.1:{}/", first.port);
    let answer = client.post(&url, HeaderMap::new(), Bytes::from("signed")).await.unwrap();
    assert_eq!((answer.status, other.heard().len()), (302, 0));
    let inside = client.post("https://10.0.0.1/", HeaderMap::new(), Bytes::new()).await;
    assert!(matches!(inside, Err(Error::Refused(_))));
}

/// A certificate for this name, which nobody but the holder of the file trusts.
fn certificate(name: &str) -> (tokio_rustls::TlsAcceptor, tempfile::NamedTempFile) {
    use tokio_rustls::rustls;
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), made.cert.pem()).unwrap();
    (tokio_rustls::TlsAcceptor::from(Arc::new(config)), file)
}

#[tokio::test]
async fn tls_is_spoken_with_whom_the_certificate_names() {
    let (tls, trusted) = certificate("hooks.example");
    let peer = Peer::start(ok(b"picture"), Some(tls), false).await;
    let names =
        Names::of(&[("hooks.example", &[&["127.0.0.1"]]), ("other.example", &[&["127.0.0.1"]])]);
    let call = async |certificates: Option<PathBuf>, name: &str| {
        let options = Options { certificates, ..options(&["127.0.0.1"]) };
        let client = Client::new(options, Arc::clone(&names) as Arc<dyn Resolver>);
        get(&client, &format!("https://{name}:{}/", peer.port)).await
    };
    let trusted = Some(trusted.path().to_owned());
    assert_eq!(call(trusted.clone(), "hooks.example").await, Ok(Bytes::from("picture")));
    for answer in [call(trusted, "other.example").await, call(None, "hooks.example").await] {
        let message = answer.unwrap_err().to_string();
        assert!(message.contains("TLS certificate is not trusted"), "{message}");
    }
    assert_eq!(peer.heard().iter().filter(|heard| heard.starts_with("GET ")).count(), 1);
}
