//! Which addresses are anybody's, and which belong to this machine, its network or its provider.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv6Net};

/// Addresses that are not public: IANA's special-purpose registries, and what clouds answer inside.
const NOT_PUBLIC: &[&str] = &[
    "0.0.0.0/8",        // this network
    "10.0.0.0/8",       // private
    "100.64.0.0/10",    // shared by carriers (and Alibaba's metadata)
    "127.0.0.0/8",      // loopback
    "168.63.129.16/32", // Azure's host, which looks public
    "169.254.0.0/16",   // link-local (and the metadata of most clouds)
    "172.16.0.0/12",    // private
    "192.0.0.0/24",     // protocol assignments (and Oracle's metadata)
    "192.0.2.0/24",     // documentation
    "192.88.99.0/24",   // 6to4 relays
    "192.168.0.0/16",   // private
    "198.18.0.0/15",    // benchmarks
    "198.51.100.0/24",  // documentation
    "203.0.113.0/24",   // documentation
    "224.0.0.0/4",      // multicast
    "240.0.0.0/4",      // reserved, broadcast
    "2001::/23",        // protocol assignments, Teredo, benchmarks
    "2001:db8::/32",    // documentation
    "2002::/16",        // 6to4: the way leads through an IPv4 address
    "3fff::/20",        // documentation
];

/// The one part of IPv6 from which public addresses are given.
const PUBLIC_V6: &str = "2000::/3";

/// IPv4 behind NAT64: as public as the address in its last 32 bits.
const NAT64: &str = "64:ff9b::/96";

/// Addresses that even a name which the operator trusts can't lead to: those under which a machine
/// or its cloud tells secrets to itself.
const NEVER_BY_NAME: &[&str] = &[
    "0.0.0.0/8",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "fd00:ec2::/32",
    "fe80::/10",
    "ff00::/8",
];

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a network of the tables above")).collect()
}

/// The address that is meant: IPv4 is also written as IPv6.
pub(super) fn plain(address: IpAddr) -> IpAddr {
    static TRANSLATED: LazyLock<Ipv6Net> = LazyLock::new(|| NAT64.parse().expect("a network"));
    match address.to_canonical() {
        IpAddr::V6(v6) if TRANSLATED.contains(&v6) => IpAddr::V4(last_32_bits(v6)),
        address => address,
    }
}

fn last_32_bits(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

/// May anybody's URL lead to this [`plain`] address?
pub(super) fn is_public(address: IpAddr) -> bool {
    static CLOSED: LazyLock<Vec<IpNet>> = LazyLock::new(|| nets(NOT_PUBLIC));
    static OPEN_V6: LazyLock<IpNet> = LazyLock::new(|| PUBLIC_V6.parse().expect("a network"));
    let given_out = address.is_ipv4() || OPEN_V6.contains(&address);
    given_out && !CLOSED.iter().any(|net| net.contains(&address))
}

/// May a name that the operator trusts lead to this [`plain`] address?
pub(super) fn may_be_named(address: IpAddr) -> bool {
    static SECRET: LazyLock<Vec<IpNet>> = LazyLock::new(|| nets(NEVER_BY_NAME));
    !SECRET.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(text: &str) -> bool {
        is_public(plain(text.parse().expect("an address")))
    }

    #[test]
    fn the_public_internet_is_public() {
        for address in [
            "1.1.1.1",
            "93.184.215.14",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450:4001:81b::200e",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_open(address), "{address}");
        }
    }

    #[test]
    fn whatever_is_inside_is_not() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::1.1.1.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff:ffff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_open(address), "{address}");
        }
    }

    #[test]
    fn a_trusted_name_leads_to_private_machines_but_not_to_metadata() {
        let may = |text: &str| may_be_named(plain(text.parse().expect("an address")));
        for address in ["10.0.0.1", "127.0.0.1", "192.168.1.1", "fd12::1", "::1", "1.1.1.1"] {
            assert!(may(address), "{address}");
        }
        for address in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "0.0.0.0"] {
            assert!(!may(address), "{address}");
        }
    }
}
