//! Preflight of what ranks reach each other by: MPI, network interfaces, the name of the host.

use crate::doctor::{Asked, Finding, State, Tell};
use crate::joined::speaks_mpi;
use comm::discover::Environment;
use comm::{listening_addresses, mpi as over_mpi};
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// For a connection within this host.
const CONNECT: Duration = Duration::from_secs(2);
const BUILD: &str = "build the plugins by tools/build-mpi.sh into the folder of the program";

/// Looks for files and programs; MPI itself starts only when ranks meet.
pub(crate) fn mpi(asked: &Asked, tell: &Tell) {
    let environment = Environment::of_process();
    let plugins = over_mpi::find(&|name| environment.get(name).map(str::to_string));
    let (there, missing): (Vec<_>, Vec<_>) = plugins.into_iter().partition(|p| p.is_file());
    if let Some(named) = environment.get("RETORT_MPI_PLUGIN").filter(|v| missing.iter().any(|p| p == Path::new(v))) {
        let what = format!("RETORT_MPI_PLUGIN={named}: there is no such file");
        tell.tell(Finding::warn("MPI", what, format!("correct it, or {BUILD}")));
    }
    let launched = asked.place.as_ref().is_ok_and(|p| speaks_mpi(p.launcher));
    let shown: Vec<String> = there.iter().map(|p| p.display().to_string()).collect();
    tell.tell(match (shown.is_empty(), launched) {
        (false, _) => Finding::ok("MPI", format!("plugin found: {}", shown.join(", "))),
        (true, true) => {
            Finding::warn("MPI", "no plugin, so ranks meet by the run folder, which all hosts must share", BUILD)
        }
        (true, false) => Finding::ok("MPI", "no plugin; without one ranks meet by the run folder"),
    });
    let Ok(answer) = Command::new("mpirun").arg("--version").output() else {
        return tell.tell(Finding::ok("MPI", "no mpirun in PATH; srun and torchrun start ranks too"));
    };
    let text = String::from_utf8_lossy(&answer.stdout);
    let Some((family, plugin)) = family(&text) else {
        let what = "mpirun is of a family that is not known here";
        return tell.tell(Finding::warn("MPI", what, "use that of Open MPI, MPICH or Intel MPI"));
    };
    let version = text.split(|c: char| c.is_whitespace()).find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
    let what = format!("mpirun is that of {family} {}", version.unwrap_or_default());
    let fits = there.is_empty() || there.iter().any(|p| p.to_string_lossy().contains(plugin));
    tell.tell(if fits {
        Finding::ok("MPI", what.trim_end())
    } else {
        Finding::warn(
            "MPI",
            format!("{}, and no plugin is for it", what.trim_end()),
            format!("load its MPI and {BUILD}"),
        )
    });
}

/// Name of the MPI from what its mpirun says, and the word in the name of its plugin.
fn family(version: &str) -> Option<(&'static str, &'static str)> {
    let known = [
        ("Open MPI", "Open MPI", "openmpi"),
        ("OpenRTE", "Open MPI", "openmpi"),
        ("Intel(R) MPI", "Intel MPI", "mpich"),
        ("HYDRA", "MPICH", "mpich"),
    ];
    known.into_iter().find(|(mark, _, _)| version.contains(mark)).map(|(_, name, plugin)| (name, plugin))
}

pub(crate) fn network(asked: &Asked, tell: &Tell) {
    let wanted = std::env::var("RETORT_IFNAME").ok();
    match listening_addresses(wanted.as_deref()) {
        Err(text) => {
            tell.tell(Finding::of_error("network", State::Fail, &text, "name one that is up by RETORT_IFNAME"));
        }
        Ok(addresses) => reach(asked, &addresses, tell),
    }
    let host = comm::host_name();
    tell.tell(match (host.as_str(), 0).to_socket_addrs().map(|mut all| all.next()) {
        Ok(Some(address)) => Finding::ok("network", format!("host name {host} is {}", address.ip())),
        Ok(None) | Err(_) => {
            let remedy = "add it to /etc/hosts or to DNS; --rendezvous by name, torchrun and SSH need it";
            Finding::warn("network", format!("host name {host} does not resolve"), remedy)
        }
    });
}

fn reach(asked: &Asked, addresses: &[(String, IpAddr)], tell: &Tell) {
    let (mut good, mut bad) = (vec![], vec![]);
    for (name, address) in addresses {
        match connect(*address) {
            Ok(()) => good.push(format!("{name} {address}")),
            Err(e) => bad.push(format!("{name} {address}: {e}")),
        }
    }
    let remedy = "a firewall or a container may forbid it; name another interface by RETORT_IFNAME";
    if good.is_empty() {
        return tell.tell(Finding::fail("network", format!("no connection to {}", bad.join(", ")), remedy));
    }
    tell.tell(Finding::ok("network", format!("listens and connects on {}", good.join(", "))));
    if !bad.is_empty() {
        tell.tell(Finding::warn("network", format!("no connection to {}", bad.join(", ")), remedy));
    }
    if asked.world() > asked.local_ranks() && addresses.iter().all(|(_, a)| a.is_loopback()) {
        let what = "only the loopback is up: ranks of other hosts cannot come";
        tell.tell(Finding::warn("network", what, "bring an interface up, or name one by RETORT_IFNAME"));
    }
}

/// A listener on a free port, and a connection to it.
fn connect(address: IpAddr) -> io::Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    TcpStream::connect_timeout(&listener.local_addr()?, CONNECT)?;
    listener.accept().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mpirun_is_known_by_what_it_says() {
        assert_eq!(family("mpirun (Open MPI) 4.1.4\n\nReport bugs to"), Some(("Open MPI", "openmpi")));
        assert_eq!(family("HYDRA build details:\n    Version:    4.0.2\n"), Some(("MPICH", "mpich")));
        assert_eq!(family("Intel(R) MPI Library for Linux* OS, Version 2021.9"), Some(("Intel MPI", "mpich")));
        assert_eq!(family("another"), None);
    }
}
