//! TLS as the settings want it: what is trusted, who the client is, which name the server must have.

use std::{io, path::Path, sync::Arc};

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

use super::{
    super::settings::{Host, Tls},
    error::{ConnectError, Endpoint},
};

/// Makes connections secure.
pub(super) struct Connector {
    connector: TlsConnector,
    /// The name that the certificate must have, where it is not the host's.
    server_name: Option<String>,
}

impl Connector {
    /// Reads the files.
    ///
    /// # Errors
    /// Refused: the text says which file has to be corrected.
    pub(super) async fn load(tls: &Tls) -> Result<Self, ConnectError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS cannot be used here".to_owned(), error))?;
        let builder = if tls.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(tls).await?), provider).build();
            let verifier =
                verifier.map_err(|error| unusable("rabbitmq.tls.ca_file cannot be used".to_owned(), error))?;
            builder.with_webpki_verifier(verifier)
        };
        let config = match identity(tls).await? {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
                unusable(
                    "rabbitmq.tls.cert_file and rabbitmq.tls.key_file do not belong together, or are of a kind that is not known"
                        .to_owned(),
                    error,
                )
            })?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name: tls.server_name.clone() })
    }

    /// Speaks TLS on a socket.
    pub(super) async fn handshake(
        &self,
        host: &Host,
        endpoint: &Endpoint,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let name = self.server_name.as_ref().unwrap_or(&host.name);
        let name = ServerName::try_from(name.clone()).map_err(|error| {
            unusable(format!("{name:?} cannot be the name of a server: correct rabbitmq.tls.server_name"), error)
        })?;
        self.connector.connect(name, socket).await.map_err(|error| endpoint.not_secured(error))
    }
}

/// Whom to trust: the authorities of the file and nobody else, or Mozilla's list.
async fn roots(tls: &Tls) -> Result<RootCertStore, ConnectError> {
    let Some(file) = &tls.ca_file else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("rabbitmq.tls.ca_file", file).await? {
        roots.add(certificate).map_err(|error| {
            unusable(format!("rabbitmq.tls.ca_file, {}, has a broken certificate", file.display()), error)
        })?;
    }
    Ok(roots)
}

/// Who the client is, if it says so by a certificate.
async fn identity(tls: &Tls) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, ConnectError> {
    let (cert_file, key_file) = match (&tls.cert_file, &tls.key_file) {
        (Some(cert_file), Some(key_file)) => (cert_file, key_file),
        (None, None) => return Ok(None),
        _ => {
            let text =
                "rabbitmq.tls.cert_file and rabbitmq.tls.key_file belong together: give both, or none".to_owned();
            return Err(unusable(text, io::Error::from(io::ErrorKind::InvalidInput)));
        }
    };
    let chain = certificates("rabbitmq.tls.cert_file", cert_file).await?;
    let pem = read("rabbitmq.tls.key_file", key_file).await?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let text =
            format!("rabbitmq.tls.key_file, {}, has no private key in PEM that is not encrypted", key_file.display());
        unusable(text, error)
    })?;
    Ok(Some((chain, key)))
}

async fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
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

async fn read(setting: &str, file: &Path) -> Result<Vec<u8>, ConnectError> {
    let text = || format!("{setting}, {}, cannot be read", file.display());
    tokio::fs::read(file).await.map_err(|error| unusable(text(), error))
}

fn unusable(text: String, cause: impl std::error::Error + Send + Sync + 'static) -> ConnectError {
    ConnectError::unusable(text, cause)
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
