//! How connections to a rayreel server are made: the one place for clients, workers and tests.

use std::time::Duration;

use reqwest::{ClientBuilder, Url, redirect};

/// A client for one rayreel server: rustls with ring; no redirects, which would carry the token
/// elsewhere; dead peers are noticed. Proxies are never asked for a server on this machine.
pub fn client(server: &Url) -> ClientBuilder {
    let builder = any_client();
    let builder = if is_loopback(server) { builder.no_proxy() } else { builder };
    if server.scheme() == "https" {
        builder
    } else {
        // Reading the system's certificates takes longer than everything else here.
        builder.tls_certs_only([])
    }
}

/// A client for whichever address a server names.
pub fn any_client() -> ClientBuilder {
    // An error says that there is a provider already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ClientBuilder::new()
        .user_agent(concat!("rayreel/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(Duration::from_secs(3))
        .pool_idle_timeout(Duration::from_secs(600))
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(5))
        .tcp_keepalive_interval(Duration::from_secs(3))
        .tcp_keepalive_retries(3)
}

/// Is the server on this machine, as far as its address tells?
pub fn is_loopback(server: &Url) -> bool {
    let host = server.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for (url, expected) in [
            ("http://127.0.0.1:8088", true),
            ("http://localhost", true),
            ("http://[::1]:1/prefix", true),
            ("https://rayreel.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn clients_can_be_built_for_either_scheme() {
        for url in ["http://127.0.0.1:1", "https://rayreel.example"] {
            client(&url.parse().unwrap()).build().unwrap();
        }
    }
}
