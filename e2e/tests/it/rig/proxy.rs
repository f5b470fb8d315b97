//! A link between a worker and its server that can be cut.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Forwards connections to a server, until it is cut.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    server: String,
    cut: AtomicBool,
    refused: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// To the server at `host:port`.
    pub(crate) fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let link = Arc::new(Link {
            server: server.to_owned(),
            cut: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            open: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&link);
        // Ends with the process.
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                if accepting.forward(connection).is_err() {
                    accepting.refused.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { url, link }
    }

    /// Breaks every connection; new ones break at once.
    pub(crate) fn cut(&self) {
        self.link.refused.store(0, Ordering::SeqCst);
        self.link.cut.store(true, Ordering::SeqCst);
        for connection in self.link.open.lock().expect("no panic holds it").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.link.cut.store(false, Ordering::SeqCst);
    }

    /// Connections that have failed since the cut.
    pub(crate) fn refused(&self) -> usize {
        self.link.refused.load(Ordering::SeqCst)
    }
}

impl Link {
    fn forward(&self, near: TcpStream) -> io::Result<()> {
        // Held while it is decided, so that a cut breaks this connection or refuses it.
        let mut open = self.open.lock().expect("no panic holds it");
        if self.cut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let far = TcpStream::connect(&self.server)?;
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            std::thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        open.extend([near, far]);
        Ok(())
    }
}
