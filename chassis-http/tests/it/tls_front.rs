//! A proxy that ends TLS in front of a server without it. Tests of adapters use the file.
#![allow(dead_code)] // not every binary needs all of it
use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Identity;

/// Ends TLS for this protocol in front of `server`; the address.
pub(crate) async fn front(server: String, identity: &Identity, alpn: &str) -> String {
    front_for(server, identity, alpn, None).await
}

/// The same, which takes only clients with a certificate of the authority `clients`.
pub(crate) async fn front_for(
    server: String,
    identity: &Identity,
    alpn: &str,
    clients: Option<&Path>,
) -> String {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
            let provider = Arc::new(default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_file(&identity.cert).unwrap()];
    let mut config =
        builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&identity.key).unwrap()).unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                copy_bidirectional(&mut stream, &mut TcpStream::connect(server).await?).await
            });
        }
    });
    address
}
