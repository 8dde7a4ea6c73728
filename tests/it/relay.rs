//! Somebody in the middle of a memory link who sees every frame.

use std::sync::{Arc, Mutex, PoisonError};

use nkcluster::transport::{MemoryNet, Wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

/// A frame on its way.
pub(crate) struct Passing {
    /// Where it comes from: the side that was dialled, or the other.
    pub(crate) from_listener: bool,
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passes {
    Yes,
    /// It vanishes.
    Dropped,
    /// The link is cut in front of it.
    Cut,
}

type Rule = dyn FnMut(usize, &mut Passing) -> Passes + Send;

/// Listens at one name and forwards each link to another. The rule gets the number of the link, from 1.
pub(crate) struct Relay {
    accepting: JoinHandle<()>,
}

impl Relay {
    pub(crate) fn start(net: &MemoryNet, at: &str, to: &str, rule: impl FnMut(usize, &mut Passing) -> Passes + Send + 'static) -> Self {
        let listener = net.listen(at).expect("the name is free");
        let (net, at, to) = (net.clone(), at.to_owned(), to.to_owned());
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(rule));
        let mut links = 0;
        let accepting = tokio::spawn(async move {
            loop {
                let dialler = listener.accept().await;
                let Ok(listener) = net.dial(&at, &to) else { continue };
                links += 1;
                tokio::spawn(forward(links, dialler, listener, Arc::clone(&rule)));
            }
        });
        Self { accepting }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(link: usize, dialler: Wire, listener: Wire, rule: Arc<Mutex<Rule>>) {
    let (dialler_reads, dialler_writes) = tokio::io::split(dialler);
    let (listener_reads, listener_writes) = tokio::io::split(listener);
    // Either direction that ends takes the other with it.
    tokio::select! {
        () = one_way(link, false, dialler_reads, listener_writes, &rule) => {}
        () = one_way(link, true, listener_reads, dialler_writes, &rule) => {}
    }
}

async fn one_way(
    link: usize,
    from_listener: bool,
    mut from: tokio::io::ReadHalf<Wire>,
    mut to: tokio::io::WriteHalf<Wire>,
    rule: &Mutex<Rule>,
) {
    let mut header = [0; 7];
    while from.read_exact(&mut header).await.is_ok() {
        let [a, b, c, d, kind, channel @ ..] = header;
        let mut body = vec![0; u32::from_be_bytes([a, b, c, d]) as usize - 3];
        if from.read_exact(&mut body).await.is_err() {
            return;
        }
        let mut frame = Passing { from_listener, kind, body };
        let passes = rule.lock().unwrap_or_else(PoisonError::into_inner)(link, &mut frame);
        match passes {
            Passes::Yes => {}
            Passes::Dropped => continue,
            Passes::Cut => return,
        }
        let length = u32::try_from(frame.body.len() + 3).expect("a frame");
        let whole = [&length.to_be_bytes()[..], &[frame.kind], &channel, &frame.body].concat();
        if to.write_all(&whole).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}
