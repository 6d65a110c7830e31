//! This host's key and certificate, and fingerprints.

use super::error::{Result, TransportError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// SHA-256 of a certificate (DER), written as ssh writes those of keys: `SHA256:` and unpadded base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const PREFIX: &str = "SHA256:";

impl Display for Fingerprint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        for chunk in self.0.chunks(3) {
            let word = chunk.iter().enumerate().fold(0u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
            for i in 0..=chunk.len() {
                write!(f, "{}", ALPHABET[(word >> (18 - 6 * i)) as usize & 63] as char)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Fingerprint {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        const WRONG: &str = "a fingerprint is SHA256: and 43 characters, as migrate keygen prints it";
        let text = text.strip_prefix(PREFIX).ok_or(WRONG)?.as_bytes();
        if text.len() != 43 {
            return Err(WRONG);
        }
        let mut bytes = [0; 32];
        for (i, letter) in text.iter().enumerate() {
            let value = ALPHABET.iter().position(|known| known == letter).ok_or(WRONG)?;
            for bit in 0..6 {
                let at = i * 6 + bit;
                let set = value >> (5 - bit) & 1 == 1;
                match bytes.get_mut(at / 8) {
                    Some(byte) => *byte |= u8::from(set) << (7 - at % 8),
                    // The last letter has two bits too many, which must be zero.
                    None if set => return Err(WRONG),
                    None => {}
                }
            }
        }
        Ok(Self(bytes))
    }
}

/// A private key and its certificate.
#[derive(Debug)]
pub struct Identity {
    /// Self-signed.
    pub certificate: CertificateDer<'static>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

fn key_path(dir: &Path) -> PathBuf {
    dir.join("key.pem")
}

fn certificate_path(dir: &Path) -> PathBuf {
    dir.join("certificate.pem")
}

impl Identity {
    /// Reads `key.pem` and `certificate.pem`. A key that others may read is refused, as ssh does.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = key_path(dir);
        let meta = fs::metadata(&path).map_err(|source| TransportError::File {
            operation: "read",
            path: path.clone(),
            source,
        })?;
        if meta.mode() & 0o077 != 0 {
            return Err(TransportError::Key {
                path,
                reason: format!("mode {:o} lets others read it; it must be 0600", meta.mode() & 0o777),
            });
        }
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|e| unusable(&path, e))?;
        let path = certificate_path(dir);
        let certificate = CertificateDer::from_pem_file(&path).map_err(|e| unusable(&path, e))?;
        Ok(Self { certificate, key })
    }

    /// Of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

fn unusable(path: &Path, error: rustls::pki_types::pem::Error) -> TransportError {
    match error {
        rustls::pki_types::pem::Error::Io(source) => {
            TransportError::File { operation: "read", path: path.into(), source }
        }
        other => TransportError::Key { path: path.into(), reason: other.to_string() },
    }
}

/// Makes a key (Ed25519) and a self-signed certificate in `dir`, which is made with mode 0700. Files there are kept
/// unless `force`.
pub fn generate(dir: &Path, name: &str, force: bool) -> Result<Identity> {
    let file = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| TransportError::File { operation, path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file("make", dir))?;
    let (key_file, certificate_file) = (key_path(dir), certificate_path(dir));
    if !force {
        for path in [&key_file, &certificate_file] {
            if path.symlink_metadata().is_ok() {
                return Err(file("overwrite", path)(io::ErrorKind::AlreadyExists.into()));
            }
        }
    }
    let wrong = |e: rcgen::Error| TransportError::Key { path: key_file.clone(), reason: e.to_string() };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(wrong)?;
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    let certificate = parameters.self_signed(&key).map_err(wrong)?;
    write_private(&certificate_file, certificate.pem().as_bytes()).map_err(file("write", &certificate_file))?;
    write_private(&key_file, key.serialize_pem().as_bytes()).map_err(file("write", &key_file))?;
    Identity::load(dir)
}

/// Writes beside the file and renames, so that there is never half a key. Mode 0600.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("pem.new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let made = generate(&keys, "host a", false).unwrap();
        assert_eq!(Identity::load(&keys).unwrap().fingerprint(), made.fingerprint());
        assert_eq!(fs::metadata(&keys).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(key_path(&keys)).unwrap().mode() & 0o777, 0o600);
        let again = generate(&keys, "host a", false);
        assert!(matches!(again, Err(TransportError::File { operation: "overwrite", .. })), "{again:?}");
        assert_eq!(Identity::load(&keys).unwrap().fingerprint(), made.fingerprint(), "untouched");
        let forced = generate(&keys, "host a", true).unwrap();
        assert_ne!(forced.fingerprint(), made.fingerprint());
    }

    #[test]
    fn a_key_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path(), "a", false).unwrap();
        fs::set_permissions(key_path(dir.path()), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(TransportError::Key { .. })));
    }

    #[test]
    fn missing_and_broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Identity::load(dir.path()).unwrap_err();
        assert!(missing.to_string().contains("key.pem") && missing.hint().unwrap().contains("keygen"));
        generate(dir.path(), "a", false).unwrap();
        fs::write(certificate_path(dir.path()), "no pem").unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(TransportError::Key { .. })));
    }

    #[test]
    fn known_fingerprint() {
        // printf abc | sha256sum | xxd -r -p | base64
        let certificate = CertificateDer::from(b"abc".to_vec());
        assert_eq!(Fingerprint::of(&certificate).to_string(), "SHA256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0");
    }

    proptest! {
        #[test]
        fn fingerprints_are_read_as_written(bytes in proptest::array::uniform32(any::<u8>())) {
            let fingerprint = Fingerprint(bytes);
            prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(SHA256:)?.{0,50}") {
            if let Ok(fingerprint) = text.parse::<Fingerprint>() {
                prop_assert_eq!(fingerprint.to_string(), text);
            }
        }
    }
}
