//! Newcomers: handshakes per second over TLS, both ends in this process: dial, TLS, four messages, trust.

use nkcluster::cluster::random_incarnation;
use nkcluster::connection::establish::{Expect, Order, Party, dial_and_establish};
use nkcluster::proto::auth::{Identity, KeyringInput, Role, VERSIONS};
use nkcluster::transport::DialOptions;
use nkcluster::types::{NodeId, Secret};

use crate::bare;
use crate::bed::{Bed, SECRET, median, rate, seconds};
use crate::report::{Report, Row};

const DIALLERS: usize = 16;
/// Ours and the baseline in turns.
const TURNS: u32 = 2;

pub(crate) async fn run(bed: &Bed, report: &mut Report) {
    if !report.wants("accepts") {
        return;
    }
    let uri = bed.control.listen()[0].clone();
    let identity = Identity {
        cluster: "nkcluster".to_owned(),
        role: Role::Admin,
        id: NodeId::new("bench").expect("valid"),
        incarnation: random_incarnation(),
        versions: VERSIONS.to_vec(),
        features: Vec::new(),
    };
    let input =
        KeyringInput { cluster: "nkcluster".to_owned(), iterations: 1000, password: Some(Secret::new(SECRET)), ..KeyringInput::default() };
    let party = Party::prepare(identity, input).await.expect("keys");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.push(bare::tls_handshakes(DIALLERS, seconds() / TURNS).await);
        let handshakes = rate(DIALLERS, seconds() / TURNS, |_| {
            let (uri, party) = (uri.clone(), party.clone());
            move || {
                let (uri, party) = (uri.clone(), party.clone());
                async move {
                    let expect = Expect::any(Role::Control);
                    let options = DialOptions::default();
                    let dialled = dial_and_establish(std::slice::from_ref(&uri), &party, &expect, Order::AsGiven, &options).await;
                    drop(dialled.expect("let in"));
                }
            }
        });
        ours.push(handshakes.await);
    }
    report.row(Row { name: "accepts", value: median(ours), unit: "1/s", baseline: median(bare) });
}
