//! Addresses: where a listener binds, and where a peer is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::config::units::{FormatError, text_type};

/// Where a listener binds: an IP address and a port. `localhost` is 127.0.0.1; port 0 lets the system choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listen(pub SocketAddr);

impl Listen {
    /// The address.
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Listen {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
            return Ok(Listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        let wrong =
            "expected an IP address and a port such as \"127.0.0.1:2575\"; \"0.0.0.0:2575\" is every address";
        text.parse().map(Listen).map_err(|_| FormatError::new(wrong))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(Listen, "septet-listen", "an address such as \"127.0.0.1:2575\"", ["127.0.0.1:2575"]);

/// A peer: a host name or IP address, and a port.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong = || FormatError::new("expected a host and a port such as \"10.0.0.5:2575\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => {
                address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                address
            }
            None => host,
        };
        let name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        let legal = text.starts_with('[') || host.chars().all(name);
        if host.is_empty() || !legal {
            return Err(wrong());
        }
        Ok(HostPort { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

text_type!(HostPort, "septet-host-port", "host and port such as \"10.0.0.5:2575\"", ["10.0.0.5:2575"]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_port() {
        assert_eq!("localhost:80".parse::<Listen>().unwrap().to_string(), "127.0.0.1:80");
        assert!("[::1]:80".parse::<Listen>().is_ok());
        for text in ["2575", ":2575", "127.0.0.1", "lab:2575", "127.0.0.1:70000"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        assert_eq!("lab.example:2575".parse::<HostPort>().unwrap().host, "lab.example");
        assert_eq!("[::1]:2575".parse::<HostPort>().unwrap().to_string(), "[::1]:2575");
        for text in ["lab", "lab:0", ":1", "a b:1", "mllp://lab:1", "[lab]:1", "::1:5"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }
}
