//! Typed calls, as an extension of [`Cluster`].

use super::class::{JobClass, TaskClass, class_name};
use crate::cluster::{CallOptions, Cluster};
use crate::error::Result;
use crate::types::{NodeId, Payload, TaskId};

/// A task that was started, with the reply of its class.
#[derive(Clone, Debug, PartialEq)]
pub struct TypedTask<A> {
    /// Its id.
    pub id: TaskId,
    /// The first reply, if the class gave one.
    pub reply: Option<A>,
}

/// Calls whose types are those of a class.
///
/// ```no_run
/// # use nkcluster::{Result, cluster::{CallOptions, Cluster}, job::{JobClass, RequestContext, TypedCalls}, types::NodeId};
/// # struct Hello;
/// # impl JobClass for Hello {
/// #     const NAME: &'static str = "hello";
/// #     type Request = String;
/// #     type Reply = String;
/// #     async fn request(&self, _: RequestContext, name: String) -> Result<String> { Ok(name) }
/// # }
/// # async fn example(cluster: Cluster) -> Result<()> {
/// let greeting = cluster.ask::<Hello>(&NodeId::new("w1")?, &"world".to_owned(), CallOptions::default()).await?;
/// # Ok(())
/// # }
/// ```
pub trait TypedCalls {
    /// One request.
    fn ask<C: JobClass>(&self, node: &NodeId, request: &C::Request, options: CallOptions) -> impl Future<Output = Result<C::Reply>> + Send
    where
        C::Request: Sync;
    /// Starts a task.
    fn start<C: TaskClass>(
        &self,
        node: &NodeId,
        spec: &C::Spec,
        options: CallOptions,
    ) -> impl Future<Output = Result<TypedTask<C::Accepted>>> + Send
    where
        C::Spec: Sync;
    /// Sends a command to a task.
    fn tell<C: TaskClass>(
        &self,
        node: &NodeId,
        task: &TaskId,
        command: &C::Command,
        options: CallOptions,
    ) -> impl Future<Output = Result<C::Answer>> + Send
    where
        C::Command: Sync;
}

impl TypedCalls for Cluster {
    async fn ask<C: JobClass>(&self, node: &NodeId, request: &C::Request, options: CallOptions) -> Result<C::Reply>
    where
        C::Request: Sync,
    {
        self.request(node, &class_name::<C>(), Payload::encode(request)?, options).await?.decode()
    }

    async fn start<C: TaskClass>(&self, node: &NodeId, spec: &C::Spec, options: CallOptions) -> Result<TypedTask<C::Accepted>>
    where
        C::Spec: Sync,
    {
        let started = self.start_task(node, &class_name::<C>(), Payload::encode(spec)?, options).await?;
        Ok(TypedTask { id: started.id, reply: started.reply.decode()? })
    }

    async fn tell<C: TaskClass>(&self, node: &NodeId, task: &TaskId, command: &C::Command, options: CallOptions) -> Result<C::Answer>
    where
        C::Command: Sync,
    {
        self.command(node, &class_name::<C>(), task, Payload::encode(command)?, options).await?.decode()
    }
}
