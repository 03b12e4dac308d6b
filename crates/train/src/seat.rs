//! Where a rank sits: the NUMA node of its GPU, those of its cores, and the nearest NIC.
//!
//! Read from sysfs, whose root is a parameter for tests. `launch/bind.sh` binds by the same rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is known of it; a system that does not tell leaves it empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seat {
    /// NUMA node of the GPU, else that of the cores if they are all of one.
    pub numa: Option<u32>,
    /// NUMA nodes of the allowed cores.
    pub core_nodes: Vec<u32>,
    /// The NIC with a link that is fewest steps away; equal ones are dealt out by local rank. Empty: none.
    pub nic: String,
}

/// Of a rank whose GPU is at this PCI address, or that has none.
pub(crate) fn of_rank(sysfs: &Path, pci: Option<&str>, allowed_cores: &str, local_rank: usize) -> Seat {
    let gpu = pci.map(|address| sysfs.join("bus/pci/devices").join(address));
    let core_nodes = nodes_of(sysfs, &numbers(allowed_cores));
    let of_cores = if let [node] = core_nodes[..] { Some(node) } else { None };
    let numa = gpu.as_deref().and_then(numa_node).or(of_cores);
    Seat { numa, core_nodes, nic: nearest_nic(sysfs, gpu.as_deref(), numa, local_rank).unwrap_or_default() }
}

/// The cores that this process may use, as `0-3,8`.
pub(crate) fn allowed_cores() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default().trim().to_string()
}

/// Numbers of a list such as `0-3,8`; what is no number is left out.
fn numbers(list: &str) -> BTreeSet<u32> {
    let range = |part: &str| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn text(path: PathBuf) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_string())
}

/// Of a device; -1, which says that the system does not know, is none.
fn numa_node(device: &Path) -> Option<u32> {
    text(device.join("numa_node"))?.parse().ok()
}

/// Entries of a folder with their names, in order.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let list = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<_> = list.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect();
    all.sort();
    all
}

fn nodes_of(sysfs: &Path, cores: &BTreeSet<u32>) -> Vec<u32> {
    let node = |(name, path): (String, PathBuf)| {
        let number = name.strip_prefix("node")?.parse().ok()?;
        let own = numbers(&text(path.join("cpulist"))?);
        (!own.is_disjoint(cores)).then_some(number)
    };
    let mut nodes: Vec<u32> = entries(&sysfs.join("devices/system/node")).into_iter().filter_map(node).collect();
    nodes.sort_unstable();
    nodes
}

/// NICs of InfiniBand with a link, else network interfaces that are devices and up.
fn nics(sysfs: &Path) -> Vec<(String, PathBuf)> {
    let device = |(name, path): (String, PathBuf)| Some((name, fs::canonicalize(path.join("device")).ok()?));
    let active = |path: &Path| {
        let ports = entries(&path.join("ports"));
        ports.into_iter().any(|(_, port)| text(port.join("state")).is_some_and(|s| s.contains("ACTIVE")))
    };
    let fabric = entries(&sysfs.join("class/infiniband")).into_iter().filter(|(_, path)| active(path));
    let fabric: Vec<_> = fabric.filter_map(device).collect();
    if !fabric.is_empty() {
        return fabric;
    }
    let up = |path: &Path| text(path.join("operstate")).is_some_and(|s| s == "up");
    entries(&sysfs.join("class/net")).into_iter().filter(|(_, path)| up(path)).filter_map(device).collect()
}

fn nearest_nic(sysfs: &Path, gpu: Option<&Path>, numa: Option<u32>, local_rank: usize) -> Option<String> {
    let gpu = gpu.and_then(|path| fs::canonicalize(path).ok());
    let far = |nic: &Path| match &gpu {
        Some(gpu) => distance(gpu, nic),
        // Without a GPU only the node counts.
        None => usize::from(numa.is_some() && numa_node(nic) != numa),
    };
    let nics: Vec<_> = nics(sysfs).into_iter().map(|(name, device)| (name, far(&device))).collect();
    let least = nics.iter().map(|n| n.1).min()?;
    let near: Vec<_> = nics.into_iter().filter(|n| n.1 == least).collect();
    Some(near[local_rank % near.len()].0.clone())
}

/// Steps between two folders of sysfs by way of the bridge that they share.
fn distance(a: &Path, b: &Path) -> usize {
    let shared = a.components().zip(b.components()).take_while(|(a, b)| a == b).count();
    a.components().count() + b.components().count() - 2 * shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Two nodes of four cores; each has a bridge with a GPU and two NICs, of which the last of node 1 has no link.
    fn machine(with_fabric: bool) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        let sysfs = root.path();
        put(sysfs, "devices/system/node/node0/cpulist", "0-3\n");
        put(sysfs, "devices/system/node/node1/cpulist", "4-5,6,7\n");
        fs::create_dir_all(sysfs.join("bus/pci/devices")).unwrap();
        for node in 0..2 {
            let bridge = format!("devices/pci0000:{node}0/0000:{node}0:01.0");
            let gpu = format!("0000:{node}b:00.0");
            put(sysfs, &format!("{bridge}/{gpu}/numa_node"), &format!("{node}\n"));
            symlink(sysfs.join(&bridge).join(&gpu), sysfs.join("bus/pci/devices").join(&gpu)).unwrap();
            for nic in 0..2 {
                let at = format!("{bridge}/0000:{node}c:00.{nic}");
                put(sysfs, &format!("{at}/numa_node"), &format!("{node}\n"));
                let class = if with_fabric { "infiniband" } else { "net" };
                let name = format!("class/{class}/nic{}", 2 * node + nic);
                let link = node == 0 || nic == 0;
                put(sysfs, &format!("{name}/ports/1/state"), if link { "4: ACTIVE\n" } else { "1: DOWN\n" });
                put(sysfs, &format!("{name}/operstate"), if link { "up\n" } else { "down\n" });
                symlink(sysfs.join(&at), sysfs.join(&name).join("device")).unwrap();
            }
        }
        put(sysfs, "class/net/lo/operstate", "unknown\n");
        put(sysfs, "class/net/bridge0/operstate", "up\n"); // no device
        root
    }

    #[test]
    fn a_gpu_has_its_node_and_the_nearest_nic() {
        for with_fabric in [true, false] {
            let root = machine(with_fabric);
            let seat = |gpu, cores, local| of_rank(root.path(), Some(gpu), cores, local);
            let at = |numa, core_nodes: &[u32], nic: &str| Seat {
                numa: Some(numa),
                core_nodes: core_nodes.to_vec(),
                nic: nic.to_string(),
            };
            assert_eq!(seat("0000:0b:00.0", "0-7", 0), at(0, &[0, 1], "nic0"));
            assert_eq!(seat("0000:0b:00.0", "0,2", 1), at(0, &[0], "nic1"), "dealt out by local rank");
            assert_eq!(seat("0000:1b:00.0", "4", 1), at(1, &[1], "nic2"), "the other has no link");
            assert_eq!(seat("0000:1b:00.0", "1", 0), at(1, &[0], "nic2"), "cores of another node than the GPU's");
        }
    }

    #[test]
    fn without_a_gpu_the_cores_decide() {
        let root = machine(true);
        let seat = |cores| of_rank(root.path(), None, cores, 0);
        assert_eq!((seat("6-7").numa, seat("6-7").nic.as_str()), (Some(1), "nic2"));
        assert_eq!((seat("0-7").numa, seat("0-7").nic.as_str()), (None, "nic0"));
    }

    #[test]
    fn a_system_that_does_not_tell_leaves_it_empty() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of_rank(root.path(), Some("0000:0b:00.0"), "0-3", 2), Seat::default());
        put(root.path(), "bus/pci/devices/0000:0b:00.0/numa_node", "-1\n");
        put(root.path(), "devices/system/node/node0/cpulist", "0-3\n");
        let seat = of_rank(root.path(), Some("0000:0b:00.0"), "0-3", 2);
        assert_eq!(seat, Seat { numa: Some(0), core_nodes: vec![0], nic: String::new() }, "the node of its cores");
        assert_eq!(numbers("0-2, 5,x,7-"), [0, 1, 2, 5].into());
        assert!(!numbers(&allowed_cores()).is_empty(), "this process may use cores");
    }
}
