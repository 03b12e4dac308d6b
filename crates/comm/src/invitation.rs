//! Where rank 0 listens and the secret of the job, as bytes and as a private file.

use crate::auth::Secret;
use crate::wire::{self, WireError};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Larger files are none of ours.
const MOST_BYTES: u64 = 1 << 16;

/// What a rank has to know to join. Whoever reads it can join as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The first to try first.
    pub addresses: Vec<SocketAddr>,
    pub secret: Secret,
}

#[derive(Serialize, Deserialize)]
enum Message {
    V1 { addresses: Vec<SocketAddr>, secret: [u8; 32] },
}

impl Invitation {
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        wire::encode(&Message::V1 { addresses: self.addresses.clone(), secret: self.secret.bytes() })
    }

    pub fn decode(mut bytes: &[u8]) -> Result<Self, WireError> {
        let Message::V1 { addresses, secret } = wire::receive(&mut bytes, MOST_BYTES as usize)?;
        if bytes.is_empty() {
            Ok(Self { addresses, secret: Secret::from_bytes(secret) })
        } else {
            Err(WireError::Garbled(bytes.len()))
        }
    }

    /// From a file that [`Posted::new`] wrote. Errors say why there is none.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("it is not there".into()),
            Err(e) => return Err(e.to_string()),
        };
        let meta = file.metadata().map_err(|e| e.to_string())?;
        let mode = meta.permissions().mode() & 0o7777;
        if !meta.is_file() || mode & 0o077 != 0 {
            return Err(format!("it is no private file (mode {mode:04o})"));
        }
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Self::decode(&bytes).map_err(|e| format!("it is no invitation: {e}"))
    }
}

/// An invitation that lies in a file until this is dropped.
pub(crate) struct Posted {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Posted {
    /// Replaces whatever was there, at once for readers. The folder is made if need be; one that others may enter is refused.
    pub(crate) fn new(path: &Path, invitation: &Invitation) -> io::Result<Self> {
        let bytes = invitation.encode().map_err(io::Error::other)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mode = fs::metadata(folder)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let remedy = format!("folder {0} is open to others (mode {mode:04o}); `chmod 700 {0}`", folder.display());
            return Err(io::Error::other(remedy));
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("an invitation needs a file name"))?;
        let unique = blake3::hash(&invitation.secret.bytes()).to_hex();
        let temporary = folder.join(format!(".{}.{}", name.to_string_lossy(), &unique[..16]));
        let written = write_new(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(Self { path: path.to_owned(), bytes })
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File =
        OpenOptions::new().write(true).create_new(true).custom_flags(nix::libc::O_NOFOLLOW).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl Drop for Posted {
    /// Takes the file away, unless another job has put its own there.
    fn drop(&mut self) {
        if fs::read(&self.path).is_ok_and(|now| now == self.bytes) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invitation(seed: u8) -> Invitation {
        let addresses = vec!["10.0.0.1:4000".parse().unwrap(), "[::1]:4001".parse().unwrap()];
        Invitation { addresses, secret: Secret::from_bytes([seed; 32]) }
    }

    #[test]
    fn a_posted_invitation_is_private_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/meeting/job-7");
        assert_eq!(Invitation::read(&path), Err("it is not there".into()));
        let old = Posted::new(&path, &invitation(1)).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let new = Posted::new(&path, &invitation(2)).unwrap();
        drop(old);
        assert_eq!(Invitation::read(&path), Ok(invitation(2)), "the new job's file stays");
        drop(new);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn open_folders_links_and_open_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let error = Posted::new(&open.join("job"), &invitation(1)).err().unwrap().to_string();
        assert!(error.contains("open to others (mode 0755); `chmod 700 "), "{error}");
        let path = dir.path().join("private/job");
        let posted = Posted::new(&path, &invitation(1)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Invitation::read(&link).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Invitation::read(&path), Err("it is no private file (mode 0644)".into()));
        drop(posted);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_invitation_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(invitation) = Invitation::decode(&bytes) {
                prop_assert_eq!(invitation.encode().unwrap(), bytes);
            }
        }
    }
}
