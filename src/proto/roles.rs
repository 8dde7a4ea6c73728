//! Which role may send which kind of frame.
//!
//! A trusted peer is still held to its role: a stolen worker cannot call anybody, an application cannot pretend to be a worker. What breaks this table
//! ends the link.

use super::auth::Role;
use super::frame::Kind;

/// Whether a trusted peer of `role` may send `kind`.
///
/// | kinds | worker | admin | control |
/// |---|---|---|---|
/// | ping, pong, fault, goaway, channel open and close | yes | yes | yes |
/// | call, cancel, outcome ack | – | yes | yes |
/// | reply | yes | – | yes |
/// | stream data, credit, reset; fragment | yes | yes | yes |
/// | describe, update, adopted, fenced, event, resync, exclusive here | yes | – | yes (a control node is also a worker) |
/// | adopt, event ack, preferred, exclusive dial, exclusive bind, envelope | – | – | yes |
/// | the handshake | – | – | – |
pub fn may_send(role: Role, kind: Kind) -> bool {
    match kind {
        Kind::Ping | Kind::Pong | Kind::Fault | Kind::GoAway | Kind::ChannelOpen | Kind::ChannelClose => true,
        Kind::StreamData | Kind::StreamCredit | Kind::StreamReset | Kind::Fragment => true,
        Kind::Call | Kind::Cancel | Kind::OutcomeAck => matches!(role, Role::Admin | Role::Control),
        Kind::Reply | Kind::Describe | Kind::Update | Kind::Adopted | Kind::Fenced | Kind::Event | Kind::Resync | Kind::ExclusiveHere => {
            matches!(role, Role::Worker | Role::Control)
        }
        Kind::Adopt | Kind::EventAck | Kind::Preferred | Kind::ExclusiveDial | Kind::ExclusiveBind | Kind::Envelope => {
            role == Role::Control
        }
        Kind::ClientFirst | Kind::ServerFirst | Kind::ClientProof | Kind::ServerProof | Kind::Refusal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_cannot_call() {
        assert!(!may_send(Role::Worker, Kind::Call));
        assert!(!may_send(Role::Worker, Kind::Adopt));
        assert!(!may_send(Role::Worker, Kind::EventAck));
        assert!(!may_send(Role::Worker, Kind::Envelope));
        assert!(!may_send(Role::Worker, Kind::OutcomeAck));
    }

    #[test]
    fn an_admin_cannot_play_a_worker() {
        for kind in [Kind::Describe, Kind::Adopted, Kind::Event, Kind::Reply, Kind::Adopt] {
            assert!(!may_send(Role::Admin, kind), "{kind:?}");
        }
    }

    #[test]
    fn nobody_repeats_the_handshake_on_a_trusted_link() {
        for role in [Role::Worker, Role::Admin, Role::Control] {
            for kind in [Kind::ClientFirst, Kind::ServerFirst, Kind::ClientProof, Kind::ServerProof, Kind::Refusal] {
                assert!(!may_send(role, kind));
            }
        }
    }
}
