//! What the parts of a control node share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::watch;

use super::backend::Local;
use super::directory::Directory;
use super::events::Hub;
use super::membership::{Membership, Prepared};
use super::peers::Peers;
use super::proxy::state::LinkKey;
use super::view::View;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::connection::establish::Party;
use crate::connection::{Link, LinkOptions};
use crate::error::{Error, ErrorCode};
use crate::job::Classes;
use crate::proto::identity::Rank;
use crate::ring::RingSize;
use crate::transport::DialOptions;
use crate::types::{Incarnation, NodeId, NodeUri};

pub(crate) struct Shared {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) config: Arc<Config>,
    pub(super) classes: Classes,
    pub(super) directory: Directory,
    pub(super) hub: Hub,
    pub(super) peers: Peers,
    pub(super) membership: Membership,
    prepared: Mutex<Option<Prepared>>,
    /// Replaced by membership at every change; watched by whatever depends on who owns what.
    pub(super) view: watch::Sender<Arc<View>>,
    /// How this node proves itself to workers that it dials.
    pub(super) party: Party,
    pub(super) dial: DialOptions,
    pub(super) listen: OnceLock<Vec<NodeUri>>,
    me: Weak<Shared>,
    cluster: OnceLock<Cluster>,
    links: Mutex<BTreeMap<LinkKey, Link>>,
    next_link: AtomicU64,
    stopping: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<Config>,
        id: NodeId,
        incarnation: Incarnation,
        classes: Classes,
        party: Party,
        dial: DialOptions,
    ) -> Arc<Self> {
        let ring = RingSize::new(config.ring_size).expect("the configuration was checked");
        let prepared = Prepared::new();
        let view = View::alone(id.clone(), incarnation, Vec::new(), ring);
        Arc::new_cyclic(|me| Self {
            id,
            incarnation,
            config,
            classes,
            directory: Directory::default(),
            hub: Hub::default(),
            peers: Peers::default(),
            membership: prepared.handle(),
            prepared: Mutex::new(Some(prepared)),
            view: watch::Sender::new(Arc::new(view)),
            party,
            dial,
            listen: OnceLock::new(),
            me: me.clone(),
            cluster: OnceLock::new(),
            links: Mutex::default(),
            next_link: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        })
    }

    /// The real addresses, once they are bound.
    pub(crate) fn set_listen(&self, listen: Vec<NodeUri>) {
        // Set once, by the node that binds them.
        let _ = self.listen.set(listen.clone());
        self.view.send_modify(|view| {
            if let Some(me) = Arc::make_mut(view).live.get_mut(&self.id) {
                me.listen = listen;
            }
        });
    }

    /// Looks for the other control nodes from now on; to be called once the addresses are known.
    pub(crate) async fn start_membership(self: &Arc<Self>) {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(prepared) = prepared {
            prepared.start(self).await;
        }
    }

    pub(super) fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever calls this holds an Arc of it")
    }

    pub(super) fn cluster(&self) -> Cluster {
        self.cluster.get_or_init(|| Cluster::new(Arc::new(Local::new(&self.me())))).clone()
    }

    /// What this node knows of the control plane now.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// How strong the claim of this node to a worker is now.
    pub(super) fn rank(&self, worker: &NodeId) -> Rank {
        self.view.borrow().rank(worker)
    }

    pub(super) fn link_options(&self) -> LinkOptions {
        LinkOptions::of_ping_time(self.config.ping_time)
    }

    /// Remembers a link until [`Shared::remove_link`], so that it ends with this node at the latest. One that is made while the node stops ends at once.
    pub(super) fn add_link(&self, link: &Link) -> LinkKey {
        let key = self.next_link.fetch_add(1, Ordering::Relaxed);
        self.links.lock().unwrap_or_else(PoisonError::into_inner).insert(key, link.clone());
        if self.is_stopping() {
            link.close(Error::new(ErrorCode::ShuttingDown, format!("control node {} is stopping", self.id)));
        }
        key
    }

    pub(super) fn remove_link(&self, key: LinkKey) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Every link, of workers and of clients, whether a proxy uses it or not.
    pub(super) fn links(&self) -> Vec<Link> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
