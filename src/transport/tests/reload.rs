//! New certificates while the listener works.

use super::*;

/// Whether the listener shows a certificate that is trusted so.
async fn presented(listener: &Listener, options: &DialOptions) -> Result<(), Error> {
    meet(listener, &listener.uri().clone().with_host(crate::types::Host::Localhost), options).await.map(drop)
}

#[tokio::test]
async fn listener_shows_its_new_certificate_when_it_is_told_to_and_keeps_the_old_one_if_that_is_broken() {
    let (old, new) = (Files::new(), Files::new());
    let trusting =
        |files: &Files| tls(TlsOptions { cacertfile: Some(files.path("ca.pem")), verify: TlsVerify::Host, ..TlsOptions::default() });
    let replace = |name: &str| fs::copy(new.path(name), old.path(name)).expect("copies");
    for transport in ["tls", "wss", "quic"] {
        let old_trust = Files::new();
        for name in ["ca.pem", "localhost.pem", "localhost.key"] {
            fs::copy(old_trust.path(name), old.path(name)).expect("copies");
        }
        let listen = ListenOptions { tls: old.options("localhost", TlsVerify::False), ..ListenOptions::default() };
        let listener = bind(&format!("nkcluster://127.0.0.1:0;transport={transport}"), &listen).await;
        presented(&listener, &trusting(&old_trust)).await.expect("the old one");
        let (mut ours, mut theirs) = meet(&listener, listener.uri(), &DialOptions::default()).await.expect("they meet");

        // A certificate whose key is still the old one.
        replace("localhost.pem");
        presented(&listener, &trusting(&old_trust)).await.expect("nobody has asked for the new one");
        let error = listener.reload().await.expect_err("they do not belong together");
        assert_eq!(error.code(), &ErrorCode::InvalidConfig);
        assert!(error.message().contains("localhost.pem"), "{error}");
        presented(&listener, &trusting(&old_trust)).await.expect("still the old one");

        replace("localhost.key");
        listener.reload().await.expect("good files");
        presented(&listener, &trusting(&new)).await.expect("the new one");
        presented(&listener, &trusting(&old_trust)).await.expect_err("no longer the old one");

        fs::remove_file(old.path("localhost.key")).expect("removes");
        listener.reload().await.expect_err("no key");
        presented(&listener, &trusting(&new)).await.expect("still the new one");

        // What was open has noticed nothing.
        ours.write_u8(7).await.expect("writes");
        ours.flush().await.expect("flushes");
        assert_eq!(theirs.read_u8().await.expect("reads"), 7);
    }
}

#[tokio::test]
async fn listener_without_certificate_has_nothing_to_reload() {
    bind(EVERY[0], &ListenOptions::default()).await.reload().await.expect("nothing to do");
    bind(EVERY[2], &ListenOptions::default()).await.reload().await.expect("nothing to do");
}
