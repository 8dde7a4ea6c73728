//! The handshake as a pair of machines: what must work, and every attack that must not.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;
use serde::Serialize;
use serde_bytes::ByteArray;

use super::messages::Message;
use super::*;
use crate::error::ErrorCode;
use crate::types::Secret;

const ITERATIONS: u32 = 2;

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid id")
}

fn identity(role: Role, name: &str) -> Identity {
    Identity {
        cluster: "c".to_owned(),
        role,
        id: id(name),
        incarnation: Incarnation::from_bytes([role as u8 + 1; 16]),
        versions: VERSIONS.to_vec(),
        features: vec![],
    }
}

fn secrets() -> KeyringInput {
    KeyringInput { cluster: "c".to_owned(), iterations: ITERATIONS, password: Some(Secret::from("s3cret")), ..KeyringInput::default() }
}

fn keyring(role: Role, input: &KeyringInput) -> Arc<Keyring> {
    Arc::new(Keyring::derive(role, input).expect("derives"))
}

fn dialling(role: Role, name: &str, expect: Role) -> DiallerSetup {
    DiallerSetup {
        identity: Arc::new(identity(role, name)),
        keyring: keyring(role, &secrets()),
        expect_role: expect,
        expect_id: None,
        nonce: [1; 32],
        channel: DiallerChannel::Plain,
    }
}

fn listening(role: Role, name: &str) -> ListenerSetup {
    ListenerSetup {
        identity: Arc::new(identity(role, name)),
        keyring: keyring(role, &secrets()),
        nonce: [2; 32],
        channel: ListenerChannel { exporter: None, accept_unbound: false },
    }
}

/// A worker that dials a control node.
fn usual() -> (DiallerSetup, ListenerSetup) {
    (dialling(Role::Worker, "w1", Role::Control), listening(Role::Control, "c1"))
}

fn send(step: Result<ListenerStep, AuthError>) -> AuthFrame {
    match step {
        Ok(ListenerStep::Send(frame)) => frame,
        other => panic!("expected a frame, got {other:?}"),
    }
}

fn answer(step: Result<DiallerStep, AuthError>) -> AuthFrame {
    match step {
        Ok(DiallerStep::Send(frame)) => frame,
        other => panic!("expected a frame, got {other:?}"),
    }
}

/// How each side ended; a side that never got its last frame has no result.
#[derive(Debug)]
struct Ends {
    dialler: Option<Result<Peer, AuthError>>,
    listener: Option<Result<Peer, AuthError>>,
}

impl Ends {
    fn dialler_fault(self) -> AuthError {
        self.dialler.expect("the dialler has ended").expect_err("the dialler fails")
    }

    fn listener_fault(self) -> AuthError {
        self.listener.expect("the listener has ended").expect_err("the listener fails")
    }
}

fn shake(dialler: DiallerSetup, listener: ListenerSetup) -> Ends {
    shake_through(dialler, listener, |frame| frame)
}

/// Runs both machines; `middle` sees and may change every frame.
fn shake_through(dialler: DiallerSetup, listener: ListenerSetup, mut middle: impl FnMut(AuthFrame) -> AuthFrame) -> Ends {
    let mut ends = Ends { dialler: None, listener: None };
    let (mut dialler, mut frame) = Dialler::start(dialler);
    let mut listener = Listener::new(listener);
    loop {
        frame = middle(frame);
        frame = match listener.handle(frame.kind, &frame.body) {
            Ok(ListenerStep::Send(frame)) => frame,
            Ok(ListenerStep::Trusted(frame, peer)) => {
                ends.listener = Some(Ok(peer));
                frame
            }
            Err(fault) => {
                let refusal = fault.refusal().to_frame();
                ends.listener = Some(Err(fault));
                refusal
            }
        };
        frame = middle(frame);
        frame = match dialler.handle(frame.kind, &frame.body) {
            Ok(DiallerStep::Send(frame)) => frame,
            Ok(DiallerStep::Trusted(peer)) => {
                ends.dialler = Some(Ok(peer));
                return ends;
            }
            Err(fault) => {
                ends.dialler = Some(Err(fault));
                return ends;
            }
        };
    }
}

fn assert_refused_as_wrong_secret(ends: Ends) {
    let Some(Err(listener)) = &ends.listener else { panic!("the listener accepted") };
    assert_eq!(listener.code(), ErrorCode::InvalidPassword);
    match ends.dialler {
        Some(Err(AuthError::Refused(refusal))) => {
            assert_eq!(refusal.code, ErrorCode::InvalidPassword);
            assert_eq!(refusal.message, "wrong secret, name of the cluster or pbkdf2_iters");
        }
        other => panic!("the dialler is not refused: {other:?}"),
    }
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let (mut dialler, mut listener) = usual();
    let offer = |features: [&str; 3], versions: [u16; 2], from: &Identity| {
        let features = features.map(str::to_owned).to_vec();
        Arc::new(Identity { features, versions: versions.to_vec(), ..from.clone() })
    };
    dialler.identity = offer(["z", "a", "only-dialler"], [1, 3], &dialler.identity);
    listener.identity = offer(["a", "only-listener", "z"], [3, 4], &listener.identity);
    let ends = shake(dialler, listener);
    let agreed = vec!["a".to_owned(), "z".to_owned()];
    let incarnation = |byte| Incarnation::from_bytes([byte; 16]);
    let control = Peer { role: Role::Control, id: id("c1"), incarnation: incarnation(3), version: 3, features: agreed.clone() };
    let worker = Peer { role: Role::Worker, id: id("w1"), incarnation: incarnation(1), version: 3, features: agreed };
    assert_eq!(ends.dialler, Some(Ok(control)));
    assert_eq!(ends.listener, Some(Ok(worker)));
}

#[test]
fn every_pair_of_roles_with_a_control_node_can_link() {
    for (role, other) in
        [(Role::Worker, Role::Control), (Role::Admin, Role::Control), (Role::Control, Role::Control), (Role::Control, Role::Worker)]
    {
        let ends = shake(dialling(role, "d", other), listening(other, "l"));
        assert!(matches!(ends, Ends { dialler: Some(Ok(_)), listener: Some(Ok(_)) }), "{role} to {other}: {ends:?}");
    }
}

#[test]
fn a_node_may_connect_to_itself() {
    let ends = shake(dialling(Role::Control, "c1", Role::Control), listening(Role::Control, "c1"));
    assert!(matches!(ends.dialler, Some(Ok(_))));
}

#[test]
fn wrong_password_is_refused() {
    let (mut dialler, listener) = usual();
    dialler.keyring = keyring(Role::Worker, &KeyringInput { password: Some(Secret::from("wrong")), ..secrets() });
    let ends = shake(dialler, listener);
    assert!(matches!(&ends.listener, Some(Err(fault)) if fault.is_wrong_secret()));
    assert_refused_as_wrong_secret(ends);
}

/// Checklist A13-5.
#[test]
fn wrong_cluster_is_told_exactly_as_wrong_password() {
    let (mut dialler, listener) = usual();
    dialler.identity = Arc::new(Identity { cluster: "other".to_owned(), ..(*dialler.identity).clone() });
    dialler.keyring = keyring(Role::Worker, &KeyringInput { cluster: "other".to_owned(), ..secrets() });
    let ends = shake(dialler, listener);
    assert!(matches!(&ends.listener, Some(Err(fault)) if fault.is_wrong_secret()), "told late, like a wrong proof");
    assert_refused_as_wrong_secret(ends);
}

#[test]
fn name_of_another_cluster_is_refused_even_with_the_right_keys() {
    let (mut dialler, listener) = usual();
    dialler.identity = Arc::new(Identity { cluster: "other".to_owned(), ..(*dialler.identity).clone() });
    assert_refused_as_wrong_secret(shake(dialler, listener));
}

#[test]
fn role_without_a_secret_here_takes_the_path_of_a_wrong_password() {
    let (mut dialler, mut listener) = usual();
    dialler.identity = Arc::new(identity(Role::Admin, "a1"));
    dialler.keyring = keyring(Role::Admin, &secrets());
    let only = KeyringInput { password: None, control_password: Some(Secret::from("x")), ..secrets() };
    listener.keyring = keyring(Role::Control, &only);
    let ends = shake(dialler, listener);
    assert_refused_as_wrong_secret(ends);
}

/// Checklist A13-1: a listener that knows the secret says in its first message exactly what one says that does not.
#[test]
fn first_answer_of_the_listener_holds_nothing_made_of_a_secret() {
    let (dialler, listener) = usual();
    let (_, first) = Dialler::start(dialler);
    let with = |password: &str, setup: &ListenerSetup| {
        let keyring = keyring(Role::Control, &KeyringInput { password: Some(Secret::from(password)), ..secrets() });
        send(Listener::new(ListenerSetup { keyring, ..setup.clone() }).handle(first.kind, &first.body))
    };
    let answer = with("s3cret", &listener);
    assert_eq!(answer, with("another", &listener));
    assert!(!contains(&answer.body, b"s3cret"));
    assert!(!contains(&first.body, b"s3cret"));
}

/// Checklist A13-2: what the victim says as a listener cannot be used as the proof of a dialler, nor the other way round.
#[test]
fn own_messages_sent_back_are_refused() {
    let (dialler, _) = usual();
    let (mut machine, first) = Dialler::start(dialler.clone());
    assert_eq!(machine.handle(first.kind, &first.body), Err(AuthError::Reflected));

    let (mut machine, _) = Dialler::start(dialler);
    let answer = ServerFirst { nonce: ByteArray::new([1; 32]), ..server_first() }.encode();
    assert_eq!(machine.handle(answer.kind, &answer.body), Err(AuthError::Reflected), "our nonce as the listener's");
}

#[test]
fn own_nonce_sent_back_to_the_listener_is_refused() {
    let (dialler, listener) = usual();
    let (_, first) = Dialler::start(DiallerSetup { nonce: listener.nonce, ..dialler });
    assert_eq!(Listener::new(listener).handle(first.kind, &first.body), Err(AuthError::Reflected));
}

/// Checklist A13-2, the attack itself: a stranger opens a link to the victim under its own name, makes the victim dial it, and passes on what it gets.
#[test]
fn proof_of_the_victim_does_not_open_another_link_to_it() {
    // The victim is a control node that dials the stranger, whom it takes for another one.
    let (mut victim_dials, victim_first) = Dialler::start(dialling(Role::Control, "victim", Role::Control));
    // The stranger talks to the victim's listener as control node `stranger`.
    let mut victim_listens = Listener::new(listening(Role::Control, "victim"));
    let (_, stranger_first) = Dialler::start(DiallerSetup { nonce: [9; 32], ..dialling(Role::Control, "stranger", Role::Control) });
    let from_listener = send(victim_listens.handle(stranger_first.kind, &stranger_first.body));
    let proof = answer(victim_dials.handle(from_listener.kind, &from_listener.body));
    assert!(victim_first.body != stranger_first.body);
    let verdict = victim_listens.handle(proof.kind, &proof.body);
    assert!(matches!(verdict, Err(AuthError::WrongSecret(_))), "{verdict:?}");
}

#[test]
fn recorded_handshake_cannot_be_replayed() {
    let (dialler, listener) = usual();
    let (mut machine, first) = Dialler::start(dialler.clone());
    let mut original = Listener::new(listener.clone());
    let second = send(original.handle(first.kind, &first.body));
    let third = answer(machine.handle(second.kind, &second.body));
    let Ok(ListenerStep::Trusted(fourth, _)) = original.handle(third.kind, &third.body) else { panic!("the original fails") };

    let mut again = Listener::new(ListenerSetup { nonce: [3; 32], ..listener });
    send(again.handle(first.kind, &first.body));
    assert!(matches!(again.handle(third.kind, &third.body), Err(AuthError::WrongSecret(_))));

    let (mut again, _) = Dialler::start(DiallerSetup { nonce: [4; 32], ..dialler });
    answer(again.handle(second.kind, &second.body));
    assert_eq!(again.handle(fourth.kind, &fourth.body), Err(AuthError::ImpostorListener));
}

#[test]
fn machine_that_has_ended_takes_nothing_more() {
    let (dialler, listener) = usual();
    let mut machine = Listener::new(listener);
    let (_, first) = Dialler::start(dialler);
    assert!(machine.handle(KIND_CLIENT_FIRST, b"garbage").is_err());
    assert_eq!(machine.handle(first.kind, &first.body), Err(AuthError::Over), "one attempt per connection");
}

#[test]
fn proof_on_one_tls_channel_is_worthless_on_another() {
    let (mut dialler, mut listener) = usual();
    dialler.channel = DiallerChannel::Tls([1; 32]);
    listener.channel.exporter = Some([1; 32]);
    assert!(matches!(shake(dialler.clone(), listener.clone()).dialler, Some(Ok(_))));
    listener.channel.exporter = Some([2; 32]);
    assert_refused_as_wrong_secret(shake(dialler, listener));
}

#[test]
fn channel_binding_cannot_be_negotiated_away() {
    let (dialler, listener) = usual();
    let tls = ListenerChannel { exporter: Some([1; 32]), accept_unbound: false };
    let tls_or_off = ListenerChannel { accept_unbound: true, ..tls };
    let plain_or_off = ListenerChannel { exporter: None, accept_unbound: true };
    let (plain, off) = (DiallerChannel::Plain, DiallerChannel::VerifiedWithoutBinding);
    let bound = DiallerChannel::Tls([1; 32]);
    let run = |ours: DiallerChannel, theirs: ListenerChannel| {
        let ends = shake(DiallerSetup { channel: ours, ..dialler.clone() }, ListenerSetup { channel: theirs, ..listener.clone() });
        ends.listener.is_some_and(|end| end.is_ok()) && ends.dialler.is_some_and(|end| end.is_ok())
    };
    assert!(run(bound, tls) && run(bound, tls_or_off));
    assert!(run(off, tls_or_off) && run(off, plain_or_off), "by the configuration of both");
    assert!(!run(off, tls) && !run(off, listener.channel), "not by that of the dialler alone");
    assert!(!run(plain, tls) && !run(plain, tls_or_off), "TLS that somebody else put under a plain dialler");
    assert!(!run(bound, listener.channel) && !run(bound, plain_or_off), "TLS that somebody else took off");
}

#[test]
fn binding_changed_on_the_way_breaks_the_proof() {
    let (mut dialler, mut listener) = usual();
    dialler.channel = DiallerChannel::Tls([1; 32]);
    listener.channel = ListenerChannel { exporter: Some([2; 32]), accept_unbound: true };
    let ends = shake_through(dialler, listener, |frame| match frame.kind {
        KIND_CLIENT_FIRST => {
            let first = ClientFirst::decode(&frame.body).expect("decodes");
            ClientFirst { binding: Binding::Off, ..first }.encode()
        }
        KIND_SERVER_FIRST => {
            let first = ServerFirst::decode(&frame.body).expect("decodes");
            ServerFirst { binding: Binding::TlsExporter, ..first }.encode()
        }
        _ => frame,
    });
    assert_refused_as_wrong_secret(ends);
}

#[test]
fn version_changed_on_the_way_breaks_the_proof() {
    let (mut dialler, mut listener) = usual();
    for identity in [&mut dialler.identity, &mut listener.identity] {
        *identity = Arc::new(Identity { versions: vec![1, 2], ..(**identity).clone() });
    }
    let ends = shake_through(dialler, listener, |frame| match frame.kind {
        KIND_CLIENT_FIRST => {
            let first = ClientFirst::decode(&frame.body).expect("decodes");
            ClientFirst { versions: vec![1], ..first }.encode()
        }
        _ => frame,
    });
    assert_refused_as_wrong_secret(ends);
}

#[test]
fn no_common_version_is_said_openly() {
    let (mut dialler, listener) = usual();
    dialler.identity = Arc::new(Identity { versions: vec![7], ..(*dialler.identity).clone() });
    let fault = shake(dialler, listener).dialler_fault();
    assert_eq!(fault.code(), ErrorCode::UnsupportedVersion);
}

#[test]
fn version_that_was_not_offered_is_refused() {
    let (dialler, _) = usual();
    let (mut machine, _) = Dialler::start(dialler);
    let frame = ServerFirst { version: 2, ..server_first() }.encode();
    assert!(matches!(machine.handle(frame.kind, &frame.body), Err(AuthError::UnsupportedVersion { .. })));
}

#[test]
fn feature_that_was_not_offered_is_refused() {
    let (dialler, _) = usual();
    let (mut machine, _) = Dialler::start(dialler);
    let frame = ServerFirst { features: vec!["backdoor".to_owned()], ..server_first() }.encode();
    assert!(matches!(machine.handle(frame.kind, &frame.body), Err(AuthError::Malformed(_))));
}

/// Checklist A13-3: neither salt nor iterations come from a peer.
#[test]
fn iterations_of_the_peer_are_compared_and_never_used() {
    let (dialler, listener) = usual();
    let (mut machine, first) = Dialler::start(dialler);
    let frame = ServerFirst { kdf: Kdf { iterations: 1 }, ..server_first() }.encode();
    let fault = machine.handle(frame.kind, &frame.body).expect_err("refused");
    assert_eq!(fault, AuthError::Iterations { ours: ITERATIONS, theirs: 1 });

    let first = ClientFirst { kdf: Kdf { iterations: u32::MAX }, ..ClientFirst::decode(&first.body).expect("decodes") }.encode();
    let fault = Listener::new(listener).handle(first.kind, &first.body).expect_err("refused");
    assert_eq!(fault, AuthError::Iterations { ours: ITERATIONS, theirs: u32::MAX });
    assert_eq!(fault.refusal().message, "wrong secret, name of the cluster or pbkdf2_iters", "a generic word for the peer");
}

#[test]
fn wrong_role_ends_before_any_proof() {
    let fault = shake(dialling(Role::Control, "c1", Role::Worker), listening(Role::Control, "c2")).listener_fault();
    assert_eq!(fault, AuthError::UnexpectedRole { expected: Role::Worker, found: Role::Control });

    // A listener that ignores what was asked for.
    let (mut machine, _) = Dialler::start(dialling(Role::Control, "c1", Role::Worker));
    let frame = server_first().encode();
    assert!(matches!(machine.handle(frame.kind, &frame.body), Err(AuthError::UnexpectedRole { .. })));
}

#[test]
fn a_worker_lets_only_control_nodes_in() {
    for role in [Role::Worker, Role::Admin] {
        let fault = shake(dialling(role, "x", Role::Worker), listening(Role::Worker, "w1")).listener_fault();
        assert_eq!(fault, AuthError::RoleNotAccepted { ours: Role::Worker, theirs: role });
    }
}

#[test]
fn unexpected_id_ends_before_any_proof() {
    let (mut dialler, listener) = usual();
    dialler.expect_id = Some(id("c2"));
    let fault = shake(dialler.clone(), listener).listener_fault();
    assert_eq!(fault, AuthError::UnexpectedId { expected: id("c2"), found: id("c1") });

    let (mut machine, _) = Dialler::start(dialler);
    let frame = server_first().encode();
    assert!(matches!(machine.handle(frame.kind, &frame.body), Err(AuthError::UnexpectedId { .. })));
}

#[test]
fn listener_without_the_secret_is_found_out() {
    let (dialler, _) = usual();
    let (mut machine, _) = Dialler::start(dialler);
    let frame = server_first().encode();
    answer(machine.handle(frame.kind, &frame.body));
    let frame = ServerProof { proof: ByteArray::new([0; 32]), signature: None }.encode();
    assert_eq!(machine.handle(frame.kind, &frame.body), Err(AuthError::ImpostorListener));
}

#[test]
fn separate_secrets_keep_the_roles_apart() {
    let all = KeyringInput {
        password: None,
        worker_password: Some(Secret::from("w")),
        admin_password: Some(Secret::from("a")),
        control_password: Some(Secret::from("c")),
        ..secrets()
    };
    let control = keyring(Role::Control, &all);
    let attempt = |role: Role, password: &str| {
        let input = KeyringInput { password: Some(Secret::from(password)), ..secrets() };
        let dialler = DiallerSetup { keyring: keyring(role, &input), ..dialling(role, "x", Role::Control) };
        shake(dialler, ListenerSetup { keyring: control.clone(), ..listening(Role::Control, "c1") }).dialler.is_some_and(|end| end.is_ok())
    };
    assert!(attempt(Role::Worker, "w") && attempt(Role::Admin, "a") && attempt(Role::Control, "c"));
    assert!(!attempt(Role::Admin, "w") && !attempt(Role::Control, "w") && !attempt(Role::Control, "a") && !attempt(Role::Worker, "c"));
}

#[test]
fn stolen_worker_cannot_play_a_control_node_where_the_signature_is_required() {
    let split = KeyringInput { control_password: Some(Secret::from("control only")), ..secrets() };
    let public = keyring(Role::Control, &split).control_public();
    let strict = KeyringInput { control_key: public, ..secrets() };
    // The thief knows `password`, the worker secret, and makes up a control secret.
    for (control, is_genuine) in [(keyring(Role::Control, &split), true), (keyring(Role::Control, &secrets()), false)] {
        let worker = ListenerSetup { keyring: keyring(Role::Worker, &strict), ..listening(Role::Worker, "w1") };
        let dials = shake(DiallerSetup { keyring: control.clone(), ..dialling(Role::Control, "c1", Role::Worker) }, worker);
        let worker = DiallerSetup { keyring: keyring(Role::Worker, &strict), ..dialling(Role::Worker, "w1", Role::Control) };
        let listens = shake(worker, ListenerSetup { keyring: control, ..listening(Role::Control, "c1") });
        if is_genuine {
            assert!(matches!(dials.listener, Some(Ok(_))), "{dials:?}");
            assert!(matches!(listens.dialler, Some(Ok(_))), "{listens:?}");
        } else {
            assert_eq!(dials.listener, Some(Err(AuthError::WrongSignature)));
            assert_eq!(listens.dialler, Some(Err(AuthError::WrongSignature)));
        }
    }
}

#[test]
fn missing_signature_is_refused_where_it_is_required() {
    let control = keyring(Role::Control, &secrets());
    let strict = KeyringInput { control_key: control.control_public(), ..secrets() };
    let dialler = DiallerSetup { keyring: keyring(Role::Worker, &strict), ..dialling(Role::Worker, "w1", Role::Control) };
    let ends = shake_through(dialler, listening(Role::Control, "c1"), |frame| match frame.kind {
        KIND_SERVER_PROOF => ServerProof { signature: None, ..ServerProof::decode(&frame.body).expect("decodes") }.encode(),
        _ => frame,
    });
    assert_eq!(ends.dialler_fault(), AuthError::WrongSignature);
}

#[test]
fn worker_with_a_token_has_its_own_id_and_no_other() {
    let control = keyring(Role::Control, &KeyringInput { node_tokens: true, ..secrets() });
    let token = control.node_token(&id("w1")).expect("a control node with tokens").to_hex();
    let worker = keyring(Role::Worker, &KeyringInput { password: None, node_token: Some(token), ..secrets() });
    let run = |name: &str, keyring: &Arc<Keyring>| {
        let dialler = DiallerSetup { keyring: keyring.clone(), ..dialling(Role::Worker, name, Role::Control) };
        let listener = ListenerSetup { keyring: control.clone(), ..listening(Role::Control, "c1") };
        let dials = matches!(shake(dialler, listener).dialler, Some(Ok(_)));
        let dialler = DiallerSetup { keyring: control.clone(), ..dialling(Role::Control, "c1", Role::Worker) };
        let listener = ListenerSetup { keyring: keyring.clone(), ..listening(Role::Worker, name) };
        (dials, matches!(shake(dialler, listener).dialler, Some(Ok(_))))
    };
    assert_eq!(run("w1", &worker), (true, true));
    assert_eq!(run("w2", &worker), (false, false));
    let shared = keyring(Role::Worker, &secrets());
    assert_eq!(run("w1", &shared), (false, false), "the shared secret is no substitute for a token");
}

#[test]
fn password_of_an_address_serves_its_links_only() {
    let base = keyring(Role::Worker, &KeyringInput { password: Some(Secret::from("elsewhere")), ..secrets() });
    let own = Arc::new(base.with_password("c", Role::Worker, &Secret::from("s3cret")));
    assert!(own.keys_for(Role::Admin, &id("w1")).is_none());
    let (dialler, listener) = usual();
    assert!(matches!(shake(DiallerSetup { keyring: own, ..dialler }, listener).dialler, Some(Ok(_))));
}

#[test]
fn keyring_without_the_own_secret_says_what_to_set() {
    for (role, key) in [(Role::Worker, "worker_password"), (Role::Admin, "admin_password"), (Role::Control, "control_password")] {
        let error = Keyring::derive(role, &KeyringInput { password: None, ..secrets() }).expect_err("no secret");
        assert_eq!(error.code(), &ErrorCode::InvalidConfig);
        assert!(error.message().contains(key), "{error}");
    }
    let error = Keyring::derive(Role::Worker, &KeyringInput { iterations: 0, ..secrets() }).expect_err("no iterations");
    assert!(error.message().contains("pbkdf2_iters"));
    let error = Keyring::derive(Role::Control, &KeyringInput { control_key: Some([1; 32]), ..secrets() }).expect_err("foreign key");
    assert!(error.message().contains("control_key"));
}

#[test]
fn frames_that_need_trust_are_not_authenticated() {
    let (_, listener) = usual();
    for kind in 6..=u8::MAX {
        let fault = Listener::new(listener.clone()).handle(kind, b"anything").expect_err("refused");
        assert_eq!(fault.code(), ErrorCode::NotAuthenticated);
        assert_eq!(fault.refusal().code, ErrorCode::NotAuthenticated);
    }
    for kind in [KIND_SERVER_FIRST, KIND_CLIENT_PROOF, KIND_SERVER_PROOF] {
        let fault = Listener::new(listener.clone()).handle(kind, b"anything").expect_err("refused");
        assert_eq!(fault.code(), ErrorCode::ProtocolError);
    }
}

#[test]
fn fields_of_a_newer_peer_are_tolerated() {
    #[derive(Serialize)]
    struct Newer {
        #[serde(flatten)]
        first: ClientFirst,
        hobbies: Vec<&'static str>,
    }
    let (dialler, listener) = usual();
    let (_, first) = Dialler::start(dialler);
    let first = ClientFirst::decode(&first.body).expect("decodes");
    let body = rmp_serde::to_vec_named(&Newer { first, hobbies: vec!["chess"] }).expect("encodes");
    send(Listener::new(listener).handle(KIND_CLIENT_FIRST, &body));
}

/// Golden bytes of wire version 1: any change here needs another version.
#[test]
fn first_message_of_version_1_is_golden() {
    let (dialler, _) = usual();
    let (_, first) = Dialler::start(DiallerSetup { expect_id: Some(id("c1")), ..dialler });
    let hex: String = first.body.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN_CLIENT_FIRST);
}

const GOLDEN_CLIENT_FIRST: &str = "\
    8ba876657273696f6e739101a8666561747572657390a7636c7573746572a163a4726f6c65a6776f726b6572a26964a27731ab696e6361726e617469\
    6f6ec41001010101010101010101010101010101ab6578706563745f726f6c65a7636f6e74726f6ca96578706563745f6964a26331a56e6f6e6365c4\
    200101010101010101010101010101010101010101010101010101010101010101a762696e64696e67a46e6f6e65a36b646681aa697465726174696f\
    6e7302";

#[test]
fn refusal_of_a_stranger_is_made_fit_for_a_terminal() {
    let wild = Refusal { code: ErrorCode::Busy, message: format!("\u{1b}[31m{}", "x".repeat(3000)), retry_after_ms: Some(u64::MAX) };
    let (dialler, _) = usual();
    let (mut machine, _) = Dialler::start(dialler);
    let frame = wild.to_frame();
    let Err(AuthError::Refused(refusal)) = machine.handle(frame.kind, &frame.body) else { panic!("not refused") };
    assert!(refusal.message.len() <= 400 && !refusal.message.contains('\u{1b}'));
    assert_eq!(refusal.pause(), Some(Duration::from_secs(60)));
}

#[test]
fn deeply_nested_garbage_is_refused() {
    let (_, listener) = usual();
    // A map of one field that is 4000 arrays deep.
    let mut body = vec![0x81, 0xa1, b'x'];
    body.extend(std::iter::repeat_n(0x91, 4000));
    assert!(matches!(Listener::new(listener).handle(KIND_CLIENT_FIRST, &body), Err(AuthError::Malformed(_))));
}

#[test]
fn announced_sizes_are_not_believed() {
    let (_, listener) = usual();
    // A map with 4 G entries; a string of 4 GiB; an array of 4 G.
    for body in [
        &[0xdf, 255, 255, 255, 255][..],
        &[0x81, 0xdb, 255, 255, 255, 255],
        &[0x81, 0xa8, b'v', b'e', b'r', b's', b'i', b'o', b'n', b's', 0xdd, 255, 255, 255, 255],
    ] {
        assert!(matches!(Listener::new(listener.clone()).handle(KIND_CLIENT_FIRST, body), Err(AuthError::Malformed(_))));
    }
}

proptest! {
    /// Checklist A13-6.
    #[test]
    fn garbage_never_panics(frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..5000)), 1..4)) {
        let (dialler, listener) = cached_usual();
        let (mut dialler, _) = Dialler::start(dialler);
        let mut listener = Listener::new(listener);
        for (kind, body) in frames {
            for kind in [kind, kind % 6] {
                prop_assert!(!matches!(listener.handle(kind, &body), Ok(ListenerStep::Trusted(..))));
                prop_assert!(!matches!(dialler.handle(kind, &body), Ok(DiallerStep::Trusted(..))));
            }
        }
    }

    /// Whatever one bit of whichever message is changed on the way, the dialler trusts nobody; the listener neither, unless it was its own last message.
    #[test]
    fn any_change_on_the_way_breaks_the_handshake(message in 0usize..4, at: prop::sample::Index, bit in 0u8..8) {
        let (dialler, listener) = cached_usual();
        let mut count = 0;
        let ends = shake_through(dialler, listener, |mut frame| {
            if count == message {
                let at = at.index(frame.body.len());
                frame.body[at] ^= 1 << bit;
            }
            count += 1;
            frame
        });
        // The field names of an optional field are the only bytes that matter to nobody; they are covered by the proofs all the same, except in 4.
        let trusts = |end: &Option<Result<Peer, AuthError>>| matches!(end, Some(Ok(_)));
        if message < 3 {
            prop_assert!(!trusts(&ends.listener) || message == 2 && !trusts(&ends.dialler));
        }
        prop_assert!(!trusts(&ends.dialler) || message == 3);
    }
}

/// Deriving keys for every case would dominate the run.
fn cached_usual() -> (DiallerSetup, ListenerSetup) {
    static USUAL: LazyLock<(DiallerSetup, ListenerSetup)> = LazyLock::new(usual);
    USUAL.clone()
}

fn server_first() -> ServerFirst {
    ServerFirst {
        version: 1,
        features: vec![],
        role: Role::Control,
        id: id("c1"),
        incarnation: Incarnation::from_bytes([3; 16]),
        nonce: ByteArray::new([2; 32]),
        binding: Binding::None,
        kdf: Kdf { iterations: ITERATIONS },
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
