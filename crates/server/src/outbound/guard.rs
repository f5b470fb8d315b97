//! Decides which URLs, and which addresses behind them, may be called. Pure: it resolves nothing.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use reqwest::Url;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Host;

use super::{Error, address};

/// Longest URL that is looked at.
pub const MAX_URL: usize = 4_096;
/// Longest name in a message.
const MAX_SHOWN: usize = 100;

/// Something that the operator lets tenants name although it is not public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// An address or a network.
    Net(IpNet),
    /// A name, wherever it leads; lower case.
    Host(String),
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Net(IpNet::from(address)));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        match Host::parse(text) {
            // The parser would read `10.1` as an address, which nobody means.
            Ok(Host::Domain(name)) if !text.contains('/') => Ok(Self::Host(root_less(&name))),
            _ => Err(format!(
                "`{text}` is neither a host name, an address nor a network such as 10.1.0.0/16"
            )),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Host(name) => f.write_str(name),
        }
    }
}

impl Serialize for Allowed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `name.` is `name`, asked of the root.
fn root_less(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// What an address must be for a URL to lead there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    /// Public, or allowed by the operator.
    Public,
    /// Allowed by the operator: the URL has no TLS, or an unusual port.
    Allowed,
}

/// What may be called.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub(super) allow: Vec<Allowed>,
    pub(super) ports: Vec<u16>,
}

/// A URL that may be called, if its name leads to where its reach says.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) reach: Reach,
}

impl Guard {
    /// Reads a URL, and refuses what no resolver needs to be asked about.
    pub(super) fn read(&self, text: &str) -> Result<Target, Error> {
        let refused = |why: &str| Err(Error::Refused(format!("the URL {why}")));
        if text.len() > MAX_URL {
            return refused(&format!("has {} bytes; at most {MAX_URL} are read", text.len()));
        }
        // The parser would strip or encode them: what is checked must be what was sent.
        if text.bytes().any(|b| b.is_ascii_control() || b == b' ' || b == b'\\') {
            return refused("contains a space, a backslash or a control character; encode it");
        }
        match Url::parse(text) {
            Ok(url) => self.check(url),
            Err(_) => refused("can't be read; write it as https://host/path"),
        }
    }

    /// Where a redirect leads.
    pub(super) fn follow(&self, from: &Target, location: &str) -> Result<Target, Error> {
        let url = from.url.join(location);
        let url = url.map_err(|_| {
            let host = shown(&from.url);
            Error::Refused(format!("`{host}` redirects to something that is no URL"))
        })?;
        self.check(url).map_err(|error| match error {
            Error::Refused(why) => {
                Error::Refused(format!("`{}` redirects: {why}", shown(&from.url)))
            }
            error => error,
        })
    }

    fn check(&self, url: Url) -> Result<Target, Error> {
        let refused = |why: String| Err(Error::Refused(why));
        if !matches!(url.scheme(), "https" | "http") {
            let scheme: String = url.scheme().chars().take(20).collect();
            return refused(format!("`{scheme}:` URLs are not called, only https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refused("the URL contains a user name or password; leave it out".to_owned());
        }
        let port = url.port_or_known_default().unwrap_or(0);
        let ordinary = url.scheme() == "https" && self.ports.contains(&port);
        let reach = if ordinary { Reach::Public } else { Reach::Allowed };
        let host = shown(&url);
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
            Some(Host::Domain(_)) => None,
            None => return refused("the URL names no host".to_owned()),
        };
        if let Some(address) = literal {
            if !self.admits_address(address, Reach::Public) {
                return refused(format!("`{host}` is not a public address"));
            }
            if reach == Reach::Allowed && !self.admits_address(address, reach) {
                return Err(self.unusual(&url, port));
            }
        } else if reach == Reach::Allowed
            && !self.names(url.host_str().unwrap_or_default())
            && !self.allow.iter().any(|allowed| matches!(allowed, Allowed::Net(_)))
        {
            return Err(self.unusual(&url, port));
        }
        Ok(Target { url, reach })
    }

    /// Why a URL that is not ordinary is not called.
    fn unusual(&self, url: &Url, port: u16) -> Error {
        if url.scheme() != "https" {
            return Error::Refused(format!("`{}` is named without TLS; use https://", shown(url)));
        }
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        Error::Refused(format!("port {port} is not called; use {}", ports.join(" or ")))
    }

    /// The addresses that `name` leads to, if each may be called; one that may not is enough to
    /// mistrust the others.
    pub(super) fn admit(
        &self,
        name: &str,
        addresses: &[IpAddr],
        reach: Reach,
    ) -> Result<(), Error> {
        let named = self.names(name);
        let may = |address: &IpAddr| {
            named && address::may_be_named(address::plain(*address))
                || self.admits_address(*address, reach)
        };
        if !addresses.is_empty() && addresses.iter().all(may) {
            return Ok(());
        }
        match (no_public(name), reach) {
            // Told of every such name: it says nothing of where this one leads.
            (Error::Refused(why), Reach::Allowed) => Err(Error::Refused(format!(
                "{why}; without TLS, or on another port, only what the operator allows is called: use \
                 https://"
            ))),
            (error, _) => Err(error),
        }
    }

    fn names(&self, host: &str) -> bool {
        let host = root_less(host);
        self.allow.iter().any(|allowed| matches!(allowed, Allowed::Host(name) if *name == host))
    }

    fn admits_address(&self, address: IpAddr, reach: Reach) -> bool {
        let plain = address::plain(address);
        let listed = self.allow.iter().any(
            |allowed| matches!(allowed, Allowed::Net(net) if net.contains(&plain) || net.contains(&address)),
        );
        listed || reach == Reach::Public && address::is_public(plain)
    }
}

/// The same for a name that does not exist as for one that leads inside: else callers could read
/// the names of a network that is none of theirs.
pub(super) fn no_public(name: &str) -> Error {
    let name: String = name.chars().take(MAX_SHOWN).collect();
    Error::Refused(format!("`{name}` does not lead to an address that may be called"))
}

/// The host of a URL, for a message.
pub(super) fn shown(url: &Url) -> String {
    url.host_str().unwrap_or_default().chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allow: &[&str]) -> Guard {
        let allow = allow.iter().map(|text| text.parse().expect("an entry")).collect();
        Guard { allow, ports: vec![443, 8443] }
    }

    fn refused(guard: &Guard, url: &str) -> String {
        match guard.read(url) {
            Err(Error::Refused(why)) => why,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn public_https_urls_are_read() {
        let guard = guard(&[]);
        for url in [
            "https://example.com",
            "https://example.com:8443/a/b.png?c=d#e",
            "https://1.1.1.1/",
            "https://[2606:4700:4700::1111]/",
            "https://bücher.example/ü",
            "HTTPS://EXAMPLE.COM./",
        ] {
            assert_eq!(guard.read(url).expect(url).reach, Reach::Public, "{url}");
        }
    }

    #[test]
    fn every_spelling_of_an_inner_address_is_refused() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "017700000001",
            "127.0.0.1.",
            "127。0。0。1",
            "１２７.0.0.1",
            "%31%32%37.0.0.1",
            "0",
            "0.0.0.0",
            "10.0.0.1",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[fc00::1]",
            "[ff02::1]",
        ] {
            let why = refused(&guard(&[]), &format!("https://{host}/"));
            assert!(why.contains("is not a public address"), "{host}: {why}");
        }
    }

    #[test]
    fn what_is_no_https_url_is_refused_with_what_is_wrong() {
        let long = format!("https://example.com/{}", "a".repeat(MAX_URL));
        for (url, why) in [
            ("http://example.com/", "without TLS"),
            ("http://1.1.1.1/", "without TLS"),
            ("ftp://example.com/", "`ftp:`"),
            ("file:///etc/passwd", "`file:`"),
            ("gopher://example.com/", "`gopher:`"),
            ("data:image/png;base64,AA", "`data:`"),
            ("javascript:alert(1)", "`javascript:`"),
            ("unix:/run/docker.sock", "`unix:`"),
            ("https://user@example.com/", "user name"),
            ("https://user:password@example.com/", "user name"),
            ("https://:secret@example.com/", "user name"),
            ("https://example.com@127.0.0.1/", "user name"),
            ("https://example.com:22/", "port 22"),
            ("https://example.com:80/", "port 80"),
            ("https://example.com:6379/", "443 or 8443"),
            ("https://1.1.1.1:25/", "port 25"),
            ("https://example.com:99999/", "can't be read"),
            ("https://exa mple.com/", "a space"),
            ("https://example.com/\r\nX-Evil: 1", "control character"),
            ("https://example.com\t/", "control character"),
            ("https:\\\\127.0.0.1\\", "backslash"),
            ("https://", "can't be read"),
            ("https://[::1", "can't be read"),
            ("https://[fe80::1%25eth0]/", "can't be read"),
            ("https://1.2.3.4.5/", "can't be read"),
            ("https://999.1.1.1/", "can't be read"),
            ("//example.com/", "can't be read"),
            ("/etc/passwd", "can't be read"),
            ("", "can't be read"),
            (&long, "at most 4096"),
        ] {
            let found = refused(&guard(&[]), url);
            assert!(found.contains(why), "{url}: {found}");
        }
    }

    #[test]
    fn the_operator_may_allow_networks_addresses_and_names() {
        let guard = guard(&["10.1.0.0/16", "127.0.0.1", "[fd12::]", "Hooks.Internal."]);
        for url in [
            "https://10.1.2.3/",
            "http://10.1.2.3:9000/",
            "http://[::ffff:10.1.2.3]/",
            "http://127.0.0.1:8080/",
            "http://[fd12::]/",
            "http://hooks.internal:81/",
            "http://HOOKS.internal./",
        ] {
            assert!(guard.read(url).is_ok(), "{url}");
        }
        for url in ["https://10.2.0.1/", "http://127.0.0.2/", "https://[fd12::1]/"] {
            refused(&guard, url);
        }
        let inner: [IpAddr; 1] = ["10.9.9.9".parse().expect("an address")];
        assert!(guard.admit("hooks.internal", &inner, Reach::Allowed).is_ok());
        let refused = |name, reach| match guard.admit(name, &inner, reach) {
            Err(Error::Refused(why)) => why,
            other => panic!("{name}: {other:?}"),
        };
        let why = refused("x.hooks.internal", Reach::Allowed);
        assert!(why.contains("use https://"), "{why}");
        assert!(!refused("x.hooks.internal", Reach::Public).contains("https"));
        let metadata: [IpAddr; 1] = ["169.254.169.254".parse().expect("an address")];
        assert!(guard.admit("hooks.internal", &metadata, Reach::Public).is_err());
    }

    #[test]
    fn a_name_is_admitted_by_all_its_addresses() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let (strict, listed) = (guard(&[]), guard(&["10.1.0.0/16"]));
        let admits = |guard: &Guard, texts: &[&str], reach| {
            guard.admit("example.com", &addresses(texts), reach).is_ok()
        };
        assert!(admits(&strict, &["1.1.1.1", "2606:4700:4700::1111"], Reach::Public));
        assert!(!admits(&strict, &["1.1.1.1", "127.0.0.1"], Reach::Public));
        assert!(!admits(&strict, &["::ffff:127.0.0.1"], Reach::Public));
        assert!(!admits(&strict, &[], Reach::Public));
        // Without TLS, or at an odd port, public is not enough.
        assert!(!admits(&listed, &["1.1.1.1"], Reach::Allowed));
        assert!(admits(&listed, &["10.1.0.1"], Reach::Allowed));
        let missing = strict.admit("a.example", &[], Reach::Public).expect_err("refused");
        let inner = strict.admit("a.example", &addresses(&["10.0.0.1"]), Reach::Public);
        assert_eq!(missing.to_string(), inner.expect_err("refused").to_string());
    }

    #[test]
    fn an_entry_that_allows_nothing_is_no_entry() {
        for text in ["", "10.1", "10.0.0.0/33", "a/b", "https://a.example", "a b", "a.example:80"] {
            assert!(text.parse::<Allowed>().is_err(), "{text}");
        }
        let net: Allowed = "10.1.2.3/16".parse().expect("an entry");
        assert_eq!(net.to_string(), "10.1.0.0/16");
    }

    #[test]
    fn a_redirect_is_checked_like_a_url() {
        let guard = guard(&[]);
        let from = guard.read("https://example.com/a/b").expect("a target");
        let there = |location: &str| guard.follow(&from, location);
        assert_eq!(there("../c").expect("a target").url.as_str(), "https://example.com/c");
        assert!(there("https://other.example/").is_ok());
        for inward in [
            "http://example.com/",
            "//127.0.0.1/",
            "https://[::1]/",
            "file:///etc/passwd",
            "https://a@example.com/",
            "https://example.com:22/",
        ] {
            let why = there(inward).expect_err(inward).to_string();
            assert!(why.contains("`example.com` redirects"), "{why}");
        }
    }
}
