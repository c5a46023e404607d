//! TLS as the settings want it: what is trusted, who the client is, which name the server must have. For the systems whose
//! client libraries take a stream of ours.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    },
};

use super::error::BoxError;

/// TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the authorities that are trusted, and nobody else; `None`: Mozilla's list, which is built in.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate and those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// Whether the server's certificate is not verified. For development only: anybody in between can read everything.
    pub skip_verify: bool,
    /// The name that the server's certificate must have; `None`: that of the host.
    pub server_name: Option<String>,
}

/// Makes connections secure.
pub(super) struct Connector {
    connector: TlsConnector,
    /// The name that the certificate must have, where it is not the host's.
    server_name: Option<String>,
}

/// The settings cannot be used: the text says which has to be corrected.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Unusable {
    pub(super) text: String,
    #[source]
    pub(super) cause: BoxError,
}

/// No connection that is secure.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// It makes no sense to go on trying.
    Unusable(Unusable),
    /// What the library said, or the socket.
    Io(io::Error),
}

impl Connector {
    /// Reads the files. `section` is what the settings belong to in the configuration, as `rabbitmq.tls`.
    ///
    /// # Errors
    /// The text says which file has to be corrected.
    pub(super) async fn load(tls: &Tls, section: &str) -> Result<Self, Unusable> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS cannot be used here".to_owned(), error))?;
        let builder = if tls.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots(tls, section).await?), provider).build();
            let verifier = verifier.map_err(|error| unusable(format!("{section}.ca_file cannot be used"), error))?;
            builder.with_webpki_verifier(verifier)
        };
        let config = match identity(tls, section).await? {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
                unusable(
                    format!(
                        "{section}.cert_file and {section}.key_file do not belong together, or are of a kind that is not known"
                    ),
                    error,
                )
            })?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name: tls.server_name.clone() })
    }

    /// Speaks TLS on a socket to a host of that name.
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub(super) async fn handshake(
        &self,
        host: &str,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|error| {
            let text = format!("{name:?} cannot be the name of a server: correct tls.server_name");
            HandshakeError::Unusable(unusable(text, error))
        })?;
        self.connector.connect(name, socket).await.map_err(HandshakeError::Io)
    }
}

/// Whom to trust: the authorities of the file and nobody else, or Mozilla's list.
async fn roots(tls: &Tls, section: &str) -> Result<RootCertStore, Unusable> {
    let Some(file) = &tls.ca_file else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&format!("{section}.ca_file"), file).await? {
        roots.add(certificate).map_err(|error| {
            unusable(format!("{section}.ca_file, {}, has a broken certificate", file.display()), error)
        })?;
    }
    Ok(roots)
}

/// Who the client is, if it says so by a certificate.
async fn identity(
    tls: &Tls,
    section: &str,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, Unusable> {
    let (cert_file, key_file) = match (&tls.cert_file, &tls.key_file) {
        (Some(cert_file), Some(key_file)) => (cert_file, key_file),
        (None, None) => return Ok(None),
        _ => {
            let text = format!("{section}.cert_file and {section}.key_file belong together: give both, or none");
            return Err(unusable(text, io::Error::from(io::ErrorKind::InvalidInput)));
        }
    };
    let chain = certificates(&format!("{section}.cert_file"), cert_file).await?;
    let pem = read(&format!("{section}.key_file"), key_file).await?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let text =
            format!("{section}.key_file, {}, has no private key in PEM that is not encrypted", key_file.display());
        unusable(text, error)
    })?;
    Ok(Some((chain, key)))
}

async fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = read(setting, file).await?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates =
        certificates.map_err(|error| unusable(format!("{setting}, {}, is no PEM", file.display()), error))?;
    if certificates.is_empty() {
        let text = format!("{setting}, {}, has no certificate in PEM", file.display());
        return Err(unusable(text, io::Error::from(io::ErrorKind::InvalidData)));
    }
    Ok(certificates)
}

async fn read(setting: &str, file: &Path) -> Result<Vec<u8>, Unusable> {
    let text = || format!("{setting}, {}, cannot be read", file.display());
    tokio::fs::read(file).await.map_err(|error| unusable(text(), error))
}

fn unusable(text: String, cause: impl std::error::Error + Send + Sync + 'static) -> Unusable {
    Unusable { text, cause: cause.into() }
}

/// Takes any certificate, as long as the server has its key. For development: whoever is in between has one, too.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
