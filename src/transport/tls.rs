//! TLS 1.3 with a certificate on both sides, where a certificate is trusted because its fingerprint stands in the peers
//! file, and for no other reason: names, dates and issuers in it mean nothing.

use super::error::{Result, TransportError};
use super::keys::{Fingerprint, Identity};
use super::peers::{Peer, Peers};
use super::wait::{Ended, Patience};
use nix::poll::PollFlags;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error,
    ServerConfig, ServerConnection, SignatureScheme,
};
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Plain text that may wait for the socket inside rustls, bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// A TCP connection with TLS 1.3 on it, non-blocking, handshake done.
#[derive(Debug)]
pub struct TlsStream {
    socket: TcpStream,
    connection: Connection,
}

impl TlsStream {
    /// Handshake as the side that connected. The socket must be non-blocking.
    pub fn connect(
        socket: TcpStream,
        identity: &Identity,
        peers: &Peers,
        patience: &Patience,
        peer: &str,
    ) -> Result<(Self, Peer)> {
        let failed = |error: Error| tls_error(peer, &error);
        let verifier = Arc::new(ByFingerprint::new(peers));
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .map_err(failed)?;
        // The name is not looked at by our verifier; "migrate" keeps addresses out of the clear part of the handshake.
        let name = ServerName::try_from("migrate").expect("a valid name");
        let connection = ClientConnection::new(Arc::new(config), name).map_err(failed)?;
        Self::handshake(socket, connection.into(), peers, patience, peer)
    }

    /// Handshake as the side that was connected to. The socket must be non-blocking.
    pub fn accept(
        socket: TcpStream,
        identity: &Identity,
        peers: &Peers,
        patience: &Patience,
        peer: &str,
    ) -> Result<(Self, Peer)> {
        let failed = |error: Error| tls_error(peer, &error);
        let verifier = Arc::new(ByFingerprint::new(peers));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .map_err(failed)?;
        // Sessions are long and few: no resumption, so every connection shows its certificate.
        config.send_tls13_tickets = 0;
        let connection = ServerConnection::new(Arc::new(config)).map_err(failed)?;
        Self::handshake(socket, connection.into(), peers, patience, peer)
    }

    fn handshake(
        socket: TcpStream,
        mut connection: Connection,
        peers: &Peers,
        patience: &Patience,
        peer: &str,
    ) -> Result<(Self, Peer)> {
        connection.set_buffer_limit(Some(BUFFER_BYTES));
        let mut stream = Self { socket, connection };
        while stream.connection.is_handshaking() || stream.connection.wants_write() {
            let events = match stream.handshake_step() {
                Ok(()) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.read_events(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(TransportError::Tls { peer: peer.into(), reason: explain(&error) }),
            };
            patience.wait(stream.socket.as_fd(), events).map_err(|ended| match ended {
                Ended::Aborted => TransportError::Aborted { during: "the TLS handshake" },
                Ended::Silent(after) => {
                    TransportError::Silent { peer: peer.into(), during: "shaking hands (TLS)", after }
                }
                Ended::Deadline => TransportError::Deadline { peer: peer.into(), during: "the TLS handshake" },
                Ended::Poll(source) => TransportError::Io { operation: "wait for", peer: peer.into(), source },
            })?;
        }
        let entry = stream
            .connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(|certificate| peers.find(&Fingerprint::of(certificate)))
            .cloned();
        match entry {
            Some(entry) => Ok((stream, entry)),
            // The verifier let it pass, so this is unreachable unless the two disagree; never trust then.
            None => Err(TransportError::Tls { peer: peer.into(), reason: "no certificate of a known peer".into() }),
        }
    }

    fn handshake_step(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket)?;
        }
        if self.connection.is_handshaking() {
            self.fill()?;
        }
        Ok(())
    }

    /// One read from the socket into rustls; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        if self.connection.read_tls(&mut self.socket)? == 0 {
            if self.connection.is_handshaking() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the middle of the handshake"));
            }
            return Ok(false);
        }
        if let Err(error) = self.connection.process_new_packets() {
            // The peer is told why, as far as the socket takes it.
            let _ = self.connection.write_tls(&mut self.socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(true)
    }

    /// Reads plain text. `WouldBlock`: wait for [`TlsStream::read_events`]. 0 = closed by the peer, properly or not.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Without close_notify the stream was cut; frames know where they end, so the caller notices either way.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            match self.try_flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => done?,
            }
            if !self.fill()? {
                return Ok(0);
            }
        }
    }

    /// Whether plain text waits inside, invisible to poll(2).
    pub fn has_plain_text(&mut self) -> bool {
        matches!(self.connection.reader().fill_buf(), Ok(text) if !text.is_empty())
    }

    /// Takes plain text, up to what the buffer holds. `WouldBlock`: wait until writable.
    pub fn try_write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.connection.writer().write_vectored(parts)?;
        match self.try_flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(error) => Err(error),
            Ok(()) if taken > 0 => Ok(taken),
            // The buffer was full and is empty now.
            Ok(()) => self.connection.writer().write_vectored(parts),
        }
    }

    /// Pushes out what waits inside.
    pub fn try_flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Says that nothing more will come.
    pub fn close_notify(&mut self) -> io::Result<()> {
        self.connection.send_close_notify();
        self.try_flush()?;
        self.socket.shutdown(std::net::Shutdown::Write)
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// What to wait for before the next read: also writable while TLS has something to say.
    pub fn read_events(&self) -> PollFlags {
        if self.connection.wants_write() { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn tls_error(peer: &str, error: &Error) -> TransportError {
    TransportError::Tls { peer: peer.into(), reason: error.to_string() }
}

/// rustls' words, and what they mean where it is not plain.
fn explain(error: &io::Error) -> String {
    let text = error.to_string();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => other.to_string(),
        Some(Error::AlertReceived(
            rustls::AlertDescription::CertificateUnknown | rustls::AlertDescription::AccessDenied,
        )) => {
            format!("{text}: our fingerprint is not in its peers file")
        }
        _ => text,
    }
}

/// Why a certificate was refused.
#[derive(Debug, thiserror::Error)]
#[error("its fingerprint {0} is not in the peers file here")]
struct UnknownFingerprint(Fingerprint);

/// Trusts certificates whose fingerprint is in the peers file.
#[derive(Debug)]
struct ByFingerprint {
    peers: Peers,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ByFingerprint {
    fn new(peers: &Peers) -> Self {
        Self {
            peers: peers.clone(),
            algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms,
        }
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> std::result::Result<(), Error> {
        let fingerprint = Fingerprint::of(certificate);
        if self.peers.find(&fingerprint).is_some() {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(UnknownFingerprint(
            fingerprint,
        ))))))
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

const NO_TLS12: Error = Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled);

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ByFingerprint {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
