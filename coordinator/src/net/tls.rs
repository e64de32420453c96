//! Mutual TLS with the server's own certificate files.
//!
//! The chain is checked against the CA on both sides. Host names are not: cluster nodes know each other by
//! address, and the handshake of the link proves the node id.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::limits::TLS_FILES_LIFE;

/// The certificate files, as the server's configuration names them.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's certificate, with intermediate certificates if there are any (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The key's password.
    pub key_password: Option<String>,
    /// The CA's certificates: a PEM file, or a directory of them.
    pub ca: PathBuf,
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out of every log.
        f.debug_struct("TlsFiles")
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("ca", &self.ca)
            .finish()
    }
}

/// Both ends of TLS, made of one set of files.
#[derive(Clone)]
pub(super) struct Tls {
    pub acceptor: TlsAcceptor,
    pub connector: TlsConnector,
}

/// The current files and what was last made of them.
pub(super) struct TlsSource {
    files: Mutex<Option<TlsFiles>>,
    last: Mutex<Option<(Instant, TlsFiles, Tls)>>,
}

impl TlsSource {
    pub(super) fn new(files: Option<TlsFiles>) -> TlsSource {
        TlsSource {
            files: Mutex::new(files),
            last: Mutex::new(None),
        }
    }

    pub(super) fn set(&self, files: Option<TlsFiles>) {
        *self.files.lock() = files;
    }

    pub(super) fn is_on(&self) -> bool {
        self.files.lock().is_some()
    }

    /// TLS for the next connection, or `None` without TLS. Files are read again, though not for every stranger.
    pub(super) async fn get(&self) -> Result<Option<Tls>, String> {
        let Some(files) = self.files.lock().clone() else {
            return Ok(None);
        };
        if let Some((since, of, tls)) = &*self.last.lock()
            && *of == files
            && since.elapsed() < TLS_FILES_LIFE
        {
            return Ok(Some(tls.clone()));
        }
        let read_from = files.clone();
        let tls = tokio::task::spawn_blocking(move || load(&read_from))
            .await
            .map_err(|_| "reading the TLS files failed".to_owned())??;
        *self.last.lock() = Some((Instant::now(), files, tls.clone()));
        Ok(Some(tls))
    }
}

/// The name that the client gives; nobody checks it.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("mesh").unwrap_or_else(|_| unreachable!("a valid name"))
}

fn load(files: &TlsFiles) -> Result<Tls, String> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(read_roots(&files.ca)?);
    let chain = read_certificates(&files.cert)?;
    let key = read_key(files)?;
    let unfit = |e: rustls::Error| {
        let (cert, key, text) = (files.cert.display(), files.key.display(), e.to_string());
        // What `openssl x509 -req` makes without extensions.
        let is_old = text.contains("UnsupportedCertVersion");
        let hint = if is_old {
            "; make it an X.509 version 3 certificate (with extensions)"
        } else {
            ""
        };
        format!("the certificate {cert} and the key {key} do not work: {text}{hint}")
    };

    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|e| format!("the CA certificates {} do not work: {e}", files.ca.display()))?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unfit)?;
    server.alpn_protocols = vec![b"h2".to_vec()];

    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainOnly { roots, provider }))
        .with_client_auth_cert(chain, key)
        .map_err(unfit)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.enable_sni = false;
    Ok(Tls {
        acceptor: Arc::new(server).into(),
        connector: Arc::new(client).into(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("cannot read the TLS file {}: {e}", path.display()))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!(
            "the TLS file {} holds no certificate in PEM form",
            path.display()
        )),
        Err(e) => Err(format!("the TLS file {} is malformed: {e}", path.display())),
    }
}

fn read_key(files: &TlsFiles) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read(&files.key)?;
    let holds = |mark: &[u8]| pem.windows(mark.len()).any(|part| part == mark);
    if holds(b"Proc-Type: 4,ENCRYPTED") {
        return Err(format!(
            "the TLS key {} is encrypted in the old form of OpenSSL: convert it (openssl pkcs8 -topk8)",
            files.key.display()
        ));
    }
    if holds(b"BEGIN ENCRYPTED PRIVATE KEY") {
        return decrypt(&pem, files.key_password.as_deref())
            .map_err(|e| format!("the TLS key {} is encrypted: {e}", files.key.display()));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| {
        format!(
            "the TLS file {} holds no private key in PEM form: {e}",
            files.key.display()
        )
    })
}

/// Opens an encrypted PKCS #8 key (RFC 5208, PBES2 of RFC 8018).
fn decrypt(pem: &[u8], password: Option<&str>) -> Result<PrivateKeyDer<'static>, String> {
    let password = password.ok_or("its password (tls-key-file-pass) is not set")?;
    let text = std::str::from_utf8(pem).map_err(|e| e.to_string())?;
    let start = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----").unwrap_or(0);
    let (_, locked) = SecretDocument::from_pem(&text[start..]).map_err(|e| e.to_string())?;
    let info = EncryptedPrivateKeyInfo::try_from(locked.as_bytes()).map_err(|e| e.to_string())?;
    let key = info
        .decrypt(password)
        .map_err(|e| format!("it can not be decrypted with tls-key-file-pass ({e})"))?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let mut add = |file: &Path, must_work: bool| -> Result<(), String> {
        match read_certificates(file) {
            Ok(certificates) => {
                for certificate in certificates {
                    roots
                        .add(certificate)
                        .map_err(|e| format!("a CA certificate in {} does not work: {e}", file.display()))?;
                }
                Ok(())
            }
            Err(e) if must_work => Err(e),
            // A directory of CA certificates may hold other files as well.
            Err(_) => Ok(()),
        }
    };
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            add(&entry.path(), false)?;
        }
    } else {
        add(path, true)?;
    }
    if roots.is_empty() {
        return Err(format!("there is no CA certificate in {}", path.display()));
    }
    Ok(roots)
}

/// Checks a server's chain and signatures, not its name.
#[derive(Debug)]
struct ChainOnly {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
