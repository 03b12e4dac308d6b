//! Which addresses of this host rank 0 listens on.
//!
//! A named interface, or all that can lead to other hosts and, last, the loopback: ranks of one host meet without a network.
//! Bridges of containers and virtual machines have addresses that are valid on one host only, so they never count.

use nix::net::if_::InterfaceFlags;
use std::io;
use std::net::IpAddr;

/// An address of an interface that is up.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    name: String,
    address: IpAddr,
    loopback: bool,
}

/// More than any sane host has; each costs a listener.
const MOST: usize = 8;

/// Interfaces and addresses of this host that rank 0 would listen on, the first to try first. `wanted` is `RETORT_IFNAME`.
/// Errors: the interfaces cannot be listed, none has that name, or none is of use.
pub fn listening_addresses(wanted: Option<&str>) -> Result<Vec<(String, IpAddr)>, String> {
    let all = all().map_err(|e| format!("cannot list the network interfaces: {e}"))?;
    let name = |address| all.iter().find(|i| i.address == address).map_or_else(String::new, |i| i.name.clone());
    Ok(choose(&all, wanted)?.into_iter().map(|address| (name(address), address)).collect())
}

pub(crate) fn all() -> io::Result<Vec<Interface>> {
    let list = nix::ifaddrs::getifaddrs()?.filter(|i| i.flags.contains(InterfaceFlags::IFF_UP));
    Ok(list
        .filter_map(|i| {
            let storage = i.address?;
            let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let address = v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
            let loopback = i.flags.contains(InterfaceFlags::IFF_LOOPBACK);
            Some(Interface { name: i.interface_name, address, loopback })
        })
        .collect())
}

/// The addresses to listen on, the first to try first. Errors: there is no such interface, or none at all.
pub(crate) fn choose(all: &[Interface], wanted: Option<&str>) -> Result<Vec<IpAddr>, String> {
    let usable = |i: &&Interface| match i.address {
        IpAddr::V4(a) => !a.is_link_local(),
        IpAddr::V6(a) => !a.is_unicast_link_local(),
    };
    let bridge = |i: &Interface| ["docker", "virbr", "veth", "br-"].iter().any(|p| i.name.starts_with(p));
    let counts = |i: &&Interface| wanted.map_or(!bridge(i), |name| i.name == name);
    let mut chosen: Vec<&Interface> = all.iter().filter(usable).filter(counts).collect();
    chosen.sort_by_key(|i| (i.loopback, i.address.is_ipv6()));
    if chosen.is_empty() {
        let there: Vec<_> = all.iter().filter(usable).map(|i| format!("{} ({})", i.name, i.address)).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        return Err(match wanted {
            Some(name) => format!("RETORT_IFNAME={name}: no such interface is up with an address; there are: {there}"),
            None => format!("no network interface is up with an address of use; there are: {there}"),
        });
    }
    // The loopback stays, whatever is cut off.
    let far = chosen.iter().filter(|i| !i.loopback).take(MOST - 2);
    let near = chosen.iter().filter(|i| i.loopback).take(2);
    Ok(far.chain(near).map(|i| i.address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, address: &str) -> Interface {
        Interface { name: name.into(), address: address.parse().unwrap(), loopback: name == "lo" }
    }

    fn chosen(wanted: Option<&str>) -> Vec<String> {
        let all = [
            interface("lo", "127.0.0.1"),
            interface("lo", "::1"),
            interface("docker0", "172.17.0.1"),
            interface("ib0", "fd00::2"),
            interface("eth0", "10.0.0.2"),
            interface("eth0", "fe80::1"),
            interface("br-1f2e", "172.18.0.1"),
            interface("veth12", "169.254.1.1"),
            interface("virbr0", "192.168.122.1"),
            interface("ib0", "10.1.0.2"),
        ];
        choose(&all, wanted).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn bridges_never_and_the_loopback_last() {
        assert_eq!(chosen(None), ["10.0.0.2", "10.1.0.2", "fd00::2", "127.0.0.1", "::1"]);
        assert_eq!(chosen(Some("ib0")), ["10.1.0.2", "fd00::2"]);
        assert_eq!(chosen(Some("docker0")), ["172.17.0.1"], "what is asked for is taken");
    }

    #[test]
    fn a_missing_interface_is_an_error_that_lists_those_there_are() {
        let all = [interface("lo", "127.0.0.1"), interface("eth0", "10.0.0.2")];
        let error = choose(&all, Some("ib9")).unwrap_err();
        assert_eq!(
            error,
            "RETORT_IFNAME=ib9: no such interface is up with an address; there are: lo (127.0.0.1), eth0 (10.0.0.2)"
        );
        assert!(choose(&[], None).unwrap_err().ends_with("there are: none"));
    }

    #[test]
    fn this_host_has_a_loopback() {
        let addresses = choose(&all().unwrap(), None).unwrap();
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
    }
}
