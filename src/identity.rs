//! The identity of this process: its id, and the address at which others reach it.
use std::net::{IpAddr, UdpSocket};

/// An id that stays the same for the life of the process; no other process has it.
pub(crate) fn instance_id(service: &str, random: &chassis_core::Random) -> String {
    format!("{service}-{:016x}", random.next_u64())
}

/// The address to register for a listener bound at `bound`: if it is bound to all interfaces, the address of
/// one.
pub(crate) fn advertised(bound: &str, advertise: Option<&str>, is_local: bool) -> String {
    let Some((host, port)) =
        bound.rsplit_once(':').filter(|_| !bound.starts_with("unix:") && !bound.starts_with("memory:"))
    else {
        return bound.to_owned();
    };
    let bracketed = |host: &str| match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    if let Some(host) = advertise {
        return format!("{}:{port}", bracketed(host));
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) if !ip.is_unspecified() => bound.to_owned(),
        _ if is_local => format!("127.0.0.1:{port}"),
        _ => format!("{}:{port}", bracketed(&primary_interface().to_string())),
    }
}

/// The local address of packets to other networks. Finding it sends nothing.
fn primary_interface() -> IpAddr {
    // TEST-NET-1 of RFC 5737 has no hosts, and connecting a datagram socket sends nothing.
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    };
    ask().map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_reached_at_one() {
        assert_eq!(advertised("0.0.0.0:80", None, true), "127.0.0.1:80");
        assert_eq!(advertised("10.1.2.3:80", None, false), "10.1.2.3:80");
        assert_eq!(advertised("0.0.0.0:80", Some("10.0.0.5"), false), "10.0.0.5:80");
        assert_eq!(advertised("[::]:80", Some("fd00::1"), false), "[fd00::1]:80");
        assert_eq!(advertised("unix:/run/s", Some("10.0.0.5"), false), "unix:/run/s");
        assert!(!advertised("[::]:80", None, false).starts_with("[::]"));
    }
}
