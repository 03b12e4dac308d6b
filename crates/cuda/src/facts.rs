//! What a GPU is, as the driver tells.

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability: 9, 0 for sm_90.
    pub compute: [i32; 2],
    /// Multiprocessors.
    pub sms: u32,
    pub memory_bytes: usize,
    /// `GPU-…`, as nvidia-smi prints it.
    pub uuid: String,
    /// Where it is plugged in, as sysfs writes it: `0000:1b:00.0`.
    pub pci: String,
}

/// `GPU-…` of the sixteen bytes of an id.
pub(crate) fn uuid(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A GPU is function 0 of its slot.
pub(crate) fn pci(domain: i32, bus: i32, device: i32) -> String {
    format!("{domain:04x}:{bus:02x}:{device:02x}.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_other_tools_write_them() {
        assert_eq!(uuid(std::array::from_fn(|i| i as u8)), "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(pci(0, 0x1b, 0), "0000:1b:00.0");
        assert_eq!(pci(0x10000, 0xc1, 2), "10000:c1:02.0");
    }
}
