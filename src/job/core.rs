//! The built-in class `core`: what every worker answers (checklist A8).

use super::class::JobClass;
use super::context::RequestContext;
use crate::cluster::{CORE_CLASS, CoreReply, CoreRequest, FileRequest};
use crate::connection::unix_time_ms;
use crate::error::{Error, ErrorCode, Result};
use crate::transfer;

pub(super) struct Core;

/// What changes the worker, or runs something on it, leaves a line in the log.
fn audited(request: &CoreRequest) -> Option<String> {
    match request {
        CoreRequest::SetStatus(wanted) => Some(format!("set_status {}", wanted.name())),
        CoreRequest::StopTask { class, id } => Some(format!("stop_task {class} {id}")),
        CoreRequest::UpdateMeta(changes) => Some(format!("update_meta {changes}")),
        CoreRequest::RemoveMeta(names) => Some(format!("remove_meta {names:?}")),
        CoreRequest::PutData { key, .. } => Some(format!("put_data {key:?}")),
        CoreRequest::DelData(key) => Some(format!("del_data {key:?}")),
        CoreRequest::Call { function, .. } => Some(format!("call {function:?}")),
        CoreRequest::File(_) => Some("file transfer".to_owned()),
        CoreRequest::Ping
        | CoreRequest::Info
        | CoreRequest::Status
        | CoreRequest::Tasks { .. }
        | CoreRequest::Meta
        | CoreRequest::GetData(_)
        | CoreRequest::Functions => None,
    }
}

impl JobClass for Core {
    const NAME: &'static str = CORE_CLASS;
    type Request = CoreRequest;
    type Reply = CoreReply;

    async fn request(&self, mut ctx: RequestContext, request: CoreRequest) -> Result<CoreReply> {
        let node = ctx.node();
        if let Some(what) = audited(&request) {
            tracing::info!(target: "nkcluster::audit", node = %node.id(), call = %ctx.identity(), what, "core");
        }
        Ok(match request {
            CoreRequest::Ping => CoreReply::Pong { time_ms: unix_time_ms() },
            CoreRequest::Info => CoreReply::Info(Box::new(node.info())),
            CoreRequest::Status => CoreReply::Status(node.status()),
            CoreRequest::SetStatus(wanted) => CoreReply::Status(node.set_status(wanted)?),
            CoreRequest::Tasks { class } => CoreReply::Tasks(node.tasks(class.as_ref())),
            CoreRequest::StopTask { class, id } => {
                node.stop_task(&class, &id)?;
                CoreReply::Done
            }
            CoreRequest::Meta => CoreReply::Meta(node.meta()),
            CoreRequest::UpdateMeta(changes) => CoreReply::Meta(node.update_meta(&changes)?),
            CoreRequest::RemoveMeta(names) => CoreReply::Meta(node.remove_meta(&names)),
            CoreRequest::GetData(key) => CoreReply::Value(node.data(&key).unwrap_or_default()),
            CoreRequest::PutData { key, value } => {
                node.put_data(key, value)?;
                CoreReply::Done
            }
            CoreRequest::DelData(key) => {
                node.delete_data(&key);
                CoreReply::Done
            }
            CoreRequest::Call { function, args } => {
                let Some(found) = node.function(&function) else {
                    let known = node.functions().join(", ");
                    let what = format!("worker {} has no function {function:?}; it has: {known}", node.id());
                    return Err(Error::new(ErrorCode::UnknownFunction, what));
                };
                CoreReply::Value(found(args).await?)
            }
            CoreRequest::Functions => CoreReply::Functions(node.functions()),
            CoreRequest::File(FileRequest::Transfer) => {
                let root = transfer::FileRoot::open(ctx.file_root())?;
                let stream = ctx.open_stream().ok_or_else(|| Error::new(ErrorCode::NotAllowed, "a transfer needs a call with a stream"))?;
                let (what, path, file) = match transfer::handle(stream, &root).await? {
                    transfer::Outcome::Received { path, file } => ("received", path, file),
                    transfer::Outcome::Served { path, file } => ("served", path, file),
                };
                tracing::info!(target: "nkcluster::audit", call = %ctx.identity(), what, path = path.as_str(), bytes = file.bytes, "file");
                let bytes = file.bytes;
                CoreReply::File { bytes }
            }
        })
    }
}
