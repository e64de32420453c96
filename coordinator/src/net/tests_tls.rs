//! TLS with certificates that are made here.

use std::{net::TcpStream, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::{TlsFiles, Transport, testing::*};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate of `signer` and the key, trusting `ca`.
fn files(dir: &Scratch, name: &str, signer: &Ca, ca: &Ca) -> TlsFiles {
    let key = KeyPair::generate().unwrap();
    // The name fits to no address: it is not looked at.
    let params = CertificateParams::new(vec!["somewhere.invalid".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, signer).unwrap();
    TlsFiles {
        cert: dir.write(&format!("{name}.crt"), &certificate.pem()),
        key: dir.write(&format!("{name}.key"), &key.serialize_pem()),
        key_password: None,
        ca: dir.write(&format!("{name}-ca.crt"), &ca.pem()),
    }
}

#[test]
fn mutual_tls_carries_messages_and_needs_no_host_name() {
    let (dir, ca) = (Scratch::new(), authority());
    let [of_a, mut of_b] = ["a", "b"].map(|name| files(&dir, name, &ca, &ca));
    // A directory of CA certificates, with another file in it.
    let ca_dir = dir.path().join("ca");
    std::fs::create_dir(&ca_dir).unwrap();
    std::fs::write(ca_dir.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(ca_dir.join("README"), "no certificate").unwrap();
    of_b.ca = ca_dir;
    let unix_dir = Some(dir.path().to_owned());
    let a = start('a', |c| (c.tls, c.unix_dir) = (Some(of_a), unix_dir.clone()));
    let b = start('b', |c| (c.tls, c.unix_dir) = (Some(of_b), unix_dir));
    connect(&[&a, &b]);
    assert_eq!(
        (a.mesh.transport(&b.id), b.mesh.transport(&a.id)),
        (Some(Transport::Tls), Some(Transport::Tls))
    );
    let large = batch(8 << 20, 1);
    a.mesh.send(&b.id, large.clone()).unwrap();
    b.mesh.send(&a.id, query(1)).unwrap();
    until("both have arrived", &[&a, &b], || {
        b.messages(&a.id).len() == 1 && ids(&a.messages(&b.id)) == [1]
    });
    assert!(b.messages(&a.id)[0] == large);
}

#[test]
fn a_certificate_of_another_ca_is_refused_by_either_side() {
    let (dir, ca, other) = (Scratch::new(), authority(), authority());
    // b trusts both, so that only a's refusal counts; its certificate is the other CA's.
    let of_a = files(&dir, "a", &ca, &ca);
    let mut of_b = files(&dir, "b", &other, &ca);
    of_b.ca = dir.write("both.crt", &(ca.pem() + &other.pem()));
    let a = start('a', |c| c.tls = Some(of_a));
    let b = start('b', |c| c.tls = Some(of_b));
    join(&[&a, &b]);
    introduce(&[&a, &b]);
    until("a refuses as a client", &[&a, &b], || {
        a.last_error(&b.id).contains("TLS with 127.0.0.1:")
    });
    until("a refuses as a server", &[&a, &b], || {
        a.logged("refused a mesh connection") && a.logged("TLS: ")
    });
    until("b sees why", &[&a, &b], || !b.last_error(&a.id).is_empty());
    assert!(!a.mesh.is_up(&b.id) && !b.mesh.is_up(&a.id));

    b.mesh.set_tls(Some(files(&dir, "b", &ca, &ca)));
    connect(&[&a, &b]);
}

#[test]
fn bad_files_are_named_and_read_again() {
    let (dir, ca) = (Scratch::new(), authority());
    let of_a = files(&dir, "a", &ca, &ca);
    let good = files(&dir, "b", &ca, &ca);
    let a = start('a', |c| c.tls = Some(of_a));
    let b = start('b', |c| c.tls = Some(good.clone()));
    let encrypted = dir.write("encrypted.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n");
    let other_key = dir.write("other.key", &KeyPair::generate().unwrap().serialize_pem());
    let empty = dir.write("empty.pem", "");
    let absent = dir.path().join("absent.pem");
    let bad = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = good.clone();
        change(&mut files);
        files
    };
    let cases: [(TlsFiles, &Path, &str); 7] = [
        (bad(&|f| f.cert = absent.clone()), &absent, "cannot read"),
        (bad(&|f| f.key = absent.clone()), &absent, "cannot read"),
        (bad(&|f| f.ca = absent.clone()), &absent, "cannot read"),
        (bad(&|f| f.cert = empty.clone()), &empty, "no certificate"),
        (bad(&|f| f.key = empty.clone()), &empty, "no private key"),
        (bad(&|f| f.key = encrypted.clone()), &encrypted, "is encrypted"),
        (bad(&|f| f.key = other_key.clone()), &other_key, "do not work"),
    ];
    join(&[&a, &b]);
    for (files, path, what) in cases {
        b.mesh.set_tls(Some(files));
        let error = || b.last_error(&a.id);
        until("the bad file is named", &[&a, &b], || {
            introduce(&[&a, &b]);
            error().contains(what) && error().contains(&path.display().to_string())
        });
        assert!(!b.mesh.is_up(&a.id));
    }
    // The same path with good content.
    b.mesh.set_tls(Some(bad(&|f| f.cert = absent.clone())));
    std::fs::copy(&good.cert, &absent).unwrap();
    connect(&[&a, &b]);
    assert!(
        !format!(
            "{:?}",
            TlsFiles {
                key_password: Some("hidden".into()),
                ..good
            }
        )
        .contains("hidden")
    );
}

#[test]
fn plain_and_tls_do_not_mix() {
    let (dir, ca) = (Scratch::new(), authority());
    let unix_dir = Some(dir.path().to_owned());
    let a = start('a', |c| {
        (c.tls, c.unix_dir) = (Some(files(&dir, "a", &ca, &ca)), unix_dir.clone())
    });
    let b = start('b', |c| c.unix_dir = unix_dir);
    join(&[&a, &b]);
    introduce(&[&a, &b]);
    until("both fail", &[&a, &b], || {
        a.last_error(&b.id).contains("TLS") && !b.last_error(&a.id).is_empty() && a.logged("TLS: ")
    });
    assert!(!a.mesh.is_up(&b.id) && !b.mesh.is_up(&a.id));
    // Somebody who connects and says nothing is no obstacle for the others.
    let _silent: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(("127.0.0.1", a.mesh.port())).unwrap())
        .collect();
    b.mesh.set_tls(Some(files(&dir, "b", &ca, &ca)));
    connect(&[&a, &b]);
    assert_eq!(b.mesh.transport(&a.id), Some(Transport::Tls));
}
