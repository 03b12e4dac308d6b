//! Proof that both ends of a connection belong to one job: mutual challenge and response with HMAC-SHA256.
//!
//! Four frames of at most [`STRANGER`] bytes: the member says role, rank and its nonce; rank 0 answers with a nonce of
//! its own; the member proves, then rank 0 does. A proof covers side, role, job, rank and both nonces, so it fits no other
//! connection, and none can be sent back to whom it came from. Rank 0 proves nothing to who has not proved first.

use crate::wire::{self, STRANGER, WireError};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};

/// Most bytes of a secret file that are read.
const SECRET_FILE_BYTES: u64 = 1 << 16;
/// Fewest: shorter ones can be guessed from a recorded handshake.
const SECRET_BYTES: usize = 16;

/// What the ranks of one job know and nobody else does.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// A secret file that is not used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret file {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("secret file {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("secret file {0} is open to others (mode {mode:04o}); run `chmod 600 {0}`", path.display())]
    OpenToOthers { path: PathBuf, mode: u32 },
    #[error("secret file {0} holds {got} bytes, at least 16 are needed; `head -c 32 /dev/urandom > {0}`", path.display())]
    Short { path: PathBuf, got: usize },
}

impl Secret {
    /// A new one from the system's generator.
    pub fn random() -> io::Result<Self> {
        Ok(Self(nonce()?))
    }

    /// From the content of a regular file that only its owner may open, 16 bytes or more.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let io = |error| SecretError::Io { path: path.to_owned(), error };
        // Without O_NONBLOCK a pipe of that name would be waited for.
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(SecretError::NotAFile(path.to_owned()));
        }
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::OpenToOthers { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(SECRET_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() < SECRET_BYTES {
            return Err(SecretError::Short { path: path.to_owned(), got: bytes.len() });
        }
        Ok(Self(blake3::derive_key("retort: secret of a job, from a file", &bytes)))
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    Control,
    Data,
}

/// Who may come in.
pub(crate) struct Gate {
    pub(crate) secret: Secret,
    pub(crate) job: String,
}

/// A handshake that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("no proof of belonging to this job: another job, or another secret")]
    Proof,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("no random numbers: {0}")]
    Random(#[from] io::Error),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Hello {
    V1 { role: Role, rank: u32, nonce: [u8; 32] },
}

#[derive(Serialize, Deserialize)]
struct Challenge([u8; 32]);

#[derive(Serialize, Deserialize)]
struct Proof([u8; 32]);

#[derive(Clone, Copy)]
enum Side {
    Host = 1,
    Member = 2,
}

impl Gate {
    /// The state of a MAC to which `side` adds nothing more.
    fn mac(&self, side: Side, hello: &Hello, challenge: &[u8; 32]) -> Hmac<Sha256> {
        let Hello::V1 { role, rank, nonce } = hello;
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret.0).expect("HMAC takes keys of any length");
        mac.update(b"retort meeting 1");
        mac.update(&[side as u8, *role as u8]);
        mac.update(&rank.to_le_bytes());
        mac.update(nonce);
        mac.update(challenge);
        mac.update(self.job.as_bytes());
        mac
    }

    fn prove(&self, side: Side, hello: &Hello, challenge: &[u8; 32]) -> Proof {
        Proof(self.mac(side, hello, challenge).finalize().into_bytes().into())
    }

    /// In constant time.
    fn verify(&self, side: Side, hello: &Hello, challenge: &[u8; 32], proof: &Proof) -> Result<(), AuthError> {
        self.mac(side, hello, challenge).verify_slice(&proof.0).map_err(|_| AuthError::Proof)
    }

    /// Rank 0's side: who came in. Nothing else than a proof makes this succeed, whatever the peer sends.
    pub(crate) async fn let_in<S>(&self, stream: &mut S) -> Result<(Role, u32), AuthError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello: Hello = wire::receive_async(stream, STRANGER).await?;
        let challenge = nonce()?;
        wire::send_async(stream, &Challenge(challenge)).await?;
        let proof: Proof = wire::receive_async(stream, STRANGER).await?;
        self.verify(Side::Member, &hello, &challenge, &proof)?;
        wire::send_async(stream, &self.prove(Side::Host, &hello, &challenge)).await?;
        let Hello::V1 { role, rank, .. } = hello;
        Ok((role, rank))
    }

    /// The member's side: returns once rank 0 has proved itself as well.
    pub(crate) async fn enter<S>(&self, stream: &mut S, role: Role, rank: u32) -> Result<(), AuthError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = Hello::V1 { role, rank, nonce: nonce()? };
        wire::send_async(stream, &hello).await?;
        let Challenge(challenge) = wire::receive_async(stream, STRANGER).await?;
        wire::send_async(stream, &self.prove(Side::Member, &hello, &challenge)).await?;
        // Rank 0 hangs up on a wrong proof, so that is what the end of the connection means here.
        let proof: Proof = wire::receive_async(stream, STRANGER).await.map_err(|error| match error {
            WireError::Io(e) if e.kind() != io::ErrorKind::TimedOut => AuthError::Proof,
            error => error.into(),
        })?;
        self.verify(Side::Host, &hello, &challenge, &proof)
    }
}

fn nonce() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn gate(secret: u8, job: &str) -> Gate {
        Gate { secret: Secret([secret; 32]), job: job.into() }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    type Outcome = (Result<(Role, u32), AuthError>, Result<(), AuthError>);

    fn shake(host: &Gate, member: &Gate) -> Outcome {
        let (mut a, mut b) = tokio::io::duplex(1024);
        block_on(async {
            let host = async move { host.let_in(&mut a).await };
            tokio::join!(host, async move { member.enter(&mut b, Role::Data, 3).await })
        })
    }

    #[test]
    fn both_sides_prove_secret_and_job() {
        let (host, member) = shake(&gate(1, "a"), &gate(1, "a"));
        assert_eq!(host.unwrap(), (Role::Data, 3));
        member.unwrap();
        for other in [gate(2, "a"), gate(1, "b")] {
            let (host, member) = shake(&gate(1, "a"), &other);
            assert!(matches!((host, member), (Err(AuthError::Proof), Err(AuthError::Proof))));
        }
    }

    #[test]
    fn a_proof_fits_one_side_role_rank_and_pair_of_nonces() {
        let gate = gate(1, "a");
        let hello = |role, rank, nonce| Hello::V1 { role, rank, nonce: [nonce; 32] };
        let proof = gate.prove(Side::Member, &hello(Role::Control, 1, 5), &[6; 32]);
        gate.verify(Side::Member, &hello(Role::Control, 1, 5), &[6; 32], &proof).unwrap();
        for (side, hello, challenge) in [
            (Side::Host, hello(Role::Control, 1, 5), [6; 32]),
            (Side::Member, hello(Role::Data, 1, 5), [6; 32]),
            (Side::Member, hello(Role::Control, 2, 5), [6; 32]),
            (Side::Member, hello(Role::Control, 1, 6), [6; 32]),
            (Side::Member, hello(Role::Control, 1, 5), [5; 32]),
        ] {
            assert!(gate.verify(side, &hello, &challenge, &proof).is_err());
        }
    }

    #[test]
    fn secrets_are_not_printed_and_come_from_private_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let write = |bytes: &[u8], mode| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Secret::from_file(&path)
        };
        assert!(matches!(write(b"0123456789abcde", 0o600), Err(SecretError::Short { got: 15, .. })));
        let secret = write(b"0123456789abcdef", 0o600).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(not shown)");
        assert_ne!(secret, write(b"0123456789abcdeg", 0o400).unwrap());
        let open = write(b"0123456789abcdef", 0o640).unwrap_err().to_string();
        assert!(open.contains("(mode 0640); run `chmod 600 "), "{open}");
        assert!(matches!(Secret::from_file(dir.path()), Err(SecretError::NotAFile(_))));
        assert!(matches!(Secret::from_file(&dir.path().join("none")), Err(SecretError::Io { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_on_both_sides(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let gate = gate(1, "a");
            let mut peer = tokio::io::join(bytes.as_slice(), tokio::io::sink());
            prop_assert!(block_on(gate.let_in(&mut peer)).is_err());
            let mut peer = tokio::io::join(bytes.as_slice(), tokio::io::sink());
            prop_assert!(block_on(gate.enter(&mut peer, Role::Control, 1)).is_err());
        }

        #[test]
        fn well_formed_frames_without_the_secret_are_an_error(rank: u32, nonce: [u8; 32], proof: [u8; 32]) {
            let mut bytes = wire::encode(&Hello::V1 { role: Role::Control, rank, nonce }).unwrap();
            bytes.extend(wire::encode(&Proof(proof)).unwrap());
            let mut peer = tokio::io::join(bytes.as_slice(), tokio::io::sink());
            prop_assert!(matches!(block_on(gate(1, "a").let_in(&mut peer)), Err(AuthError::Proof)));
            // Nor is somebody rank 0 who lets everybody in.
            let mut bytes = wire::encode(&Challenge(nonce)).unwrap();
            bytes.extend(wire::encode(&Proof(proof)).unwrap());
            let mut peer = tokio::io::join(bytes.as_slice(), tokio::io::sink());
            let entered = block_on(gate(1, "a").enter(&mut peer, Role::Control, rank));
            prop_assert!(matches!(entered, Err(AuthError::Proof)));
        }
    }
}
