//! What the parts of a control node share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::backend::Local;
use super::directory::Directory;
use super::events::Hub;
use super::membership::{Membership, Prepared};
use super::peers::Peers;
use super::placed::Placed;
use super::proxy::state::LinkKey;
use super::records::Records;
use super::view::View;
use super::workers::Handler;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::connection::establish::Party;
use crate::connection::{Link, LinkOptions};
use crate::error::{Error, ErrorCode};
use crate::job::Classes;
use crate::proto::identity::Rank;
use crate::ring::{Ring, RingSize};
use crate::transport::DialOptions;
use crate::types::{Incarnation, NodeId, NodeUri};

/// Workers that are handed over at once: enough to be quick, few enough that none of them waits long.
const MOVES_MAX: usize = 64;

pub(crate) struct Shared {
    pub(super) id: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) config: Arc<Config>,
    pub(super) classes: Classes,
    pub(super) directory: Directory,
    pub(super) hub: Hub,
    pub(super) peers: Peers,
    pub(super) placed: Placed,
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
    pub(super) records: Records,
    /// Hand-overs that may be under way at once.
    pub(super) moves: Arc<Semaphore>,
    /// Rings of before the last change, each asked for many times while it settles: with one that leaves, or without us.
    earlier: Mutex<(u64, EarlierRings)>,
    /// Addresses that workers were told: most of them the same ones, so they are kept once.
    told: Mutex<Vec<Weak<[NodeUri]>>>,
    /// Workers that have moved and whose old channel has not ended.
    draining: Arc<AtomicUsize>,
    /// When the view changed last, and into what.
    changed: Mutex<Option<(u64, Instant)>>,
    links: Mutex<BTreeMap<LinkKey, Link>>,
    workers: Mutex<BTreeMap<LinkKey, Weak<Handler>>>,
    next_link: AtomicU64,
    /// A test says what this node sees.
    #[cfg(test)]
    pub(super) is_pinned: AtomicBool,
    /// It will stop, and lets go of its workers.
    draining_to_stop: AtomicBool,
    stopping: AtomicBool,
}

/// By the node that leaves; none for that without this node.
type EarlierRings = BTreeMap<Option<NodeId>, Arc<Ring>>;

/// A worker whose old channel has not ended.
pub(super) struct Leaving(Arc<AtomicUsize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
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
        let placed = Placed::new(&config.state_dir);
        Arc::new_cyclic(|me| Self {
            id,
            incarnation,
            config,
            classes,
            directory: Directory::default(),
            hub: Hub::default(),
            peers: Peers::default(),
            placed,
            membership: prepared.handle(),
            prepared: Mutex::new(Some(prepared)),
            view: watch::Sender::new(Arc::new(view)),
            party,
            dial,
            listen: OnceLock::new(),
            me: me.clone(),
            cluster: OnceLock::new(),
            records: Records::default(),
            moves: Arc::new(Semaphore::new(MOVES_MAX)),
            earlier: Mutex::default(),
            told: Mutex::default(),
            draining: Arc::default(),
            changed: Mutex::default(),
            links: Mutex::default(),
            workers: Mutex::default(),
            next_link: AtomicU64::new(1),
            #[cfg(test)]
            is_pinned: AtomicBool::new(false),
            draining_to_stop: AtomicBool::new(false),
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

    /// Whether this node owns a worker now: also its own, and all of them if there is nobody else.
    pub(super) fn owns(&self, worker: &NodeId) -> bool {
        *worker == self.id || self.view.borrow().owner(worker).is_none_or(|owner| *owner == self.id)
    }

    /// A worker has moved; dropped when its old channel has ended.
    pub(super) fn leaving(&self) -> Leaving {
        self.draining.fetch_add(1, Ordering::SeqCst);
        Leaving(Arc::clone(&self.draining))
    }

    /// Whether any worker that has moved still answers calls on its old channel.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst) > 0
    }

    /// Whether any worker's link is used by another control node.
    pub(super) fn is_lending(&self) -> bool {
        let workers: Vec<_> = self.workers.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect();
        workers.iter().any(|worker| worker.is_lent())
    }

    /// The same addresses, shared with every other worker that was told them.
    pub(super) fn kept_once(&self, addresses: Vec<NodeUri>) -> Arc<[NodeUri]> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = told.iter().filter_map(Weak::upgrade).find(|known| **known == *addresses) {
            return same;
        }
        told.retain(|known| known.strong_count() > 0);
        let addresses: Arc<[NodeUri]> = addresses.into();
        told.push(Arc::downgrade(&addresses));
        addresses
    }

    /// The links of workers that other control nodes use.
    pub(super) fn lent_links(&self) -> Vec<Link> {
        let workers: Vec<_> = self.workers.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect();
        workers.iter().filter(|worker| worker.is_lent()).map(|worker| worker.link.clone()).collect()
    }

    /// Notes that the view has changed.
    pub(super) fn has_changed(&self, view: &View) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = Some((view.epoch(), Instant::now()));
    }

    /// Whether the view is so new that workers may not be where they belong.
    pub(super) fn is_settling(&self, view: &View) -> bool {
        match *self.changed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((epoch, at)) => epoch != view.epoch() || at.elapsed() < super::route::SETTLING,
            None => view.live.len() > 1,
        }
    }

    /// Lets the last change be long ago, if it was noted.
    #[cfg(test)]
    pub(super) fn let_settle(&self) -> bool {
        let epoch = self.view().epoch();
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_noted = changed.is_some_and(|(of, _)| of == epoch);
        if is_noted {
            *changed = Instant::now().checked_sub(super::route::SETTLING).map(|at| (epoch, at));
        }
        is_noted
    }

    /// The ring with a node that leaves, or without this one: as it may have been before the last change, or as it will be when we are gone.
    pub(super) fn earlier_ring(&self, view: &View, with: Option<&NodeId>) -> Arc<Ring> {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        if earlier.0 != view.epoch() {
            *earlier = (view.epoch(), EarlierRings::new());
        }
        let make = || match with {
            Some(leaving) => view.ring.with(leaving.clone()),
            None => view.ring.without(&view.me),
        };
        Arc::clone(earlier.1.entry(with.cloned()).or_insert_with(|| Arc::new(make())))
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

    /// Remembers what handles a worker's link, as long as the link lives.
    pub(super) fn add_worker_link(&self, key: LinkKey, handler: &Arc<Handler>) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::downgrade(handler));
    }

    /// What handles the link of a worker.
    pub(super) fn worker_link(&self, key: LinkKey) -> Option<Arc<Handler>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).get(&key).and_then(Weak::upgrade)
    }

    pub(super) fn remove_link(&self, key: LinkKey) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// The links over which workers are adopted, but for those that have ended: not those which are for calls alone.
    pub(super) fn worker_links(&self) -> Vec<Link> {
        let workers: Vec<_> = self.workers.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect();
        workers.iter().filter(|worker| !worker.is_exclusive() && !worker.link.has_ended()).map(|worker| worker.link.clone()).collect()
    }

    /// Every link, of workers and of clients, whether a proxy uses it or not.
    pub(super) fn links(&self) -> Vec<Link> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn links_made(&self) -> u64 {
        self.next_link.load(Ordering::Relaxed)
    }

    pub(super) fn begin_drain(&self) {
        self.draining_to_stop.store(true, Ordering::SeqCst);
    }

    /// Whether this node has begun to stop, though it may still answer.
    pub(super) fn will_stop(&self) -> bool {
        self.draining_to_stop.load(Ordering::SeqCst) || self.is_stopping()
    }

    pub(super) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}
