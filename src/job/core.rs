//! The built-in class `core`: what every worker answers (checklist A8).

use super::class::JobClass;
use super::context::RequestContext;
use crate::cluster::{CORE_CLASS, CoreReply, CoreRequest, FileRequest};
use crate::connection::unix_time_ms;
use crate::error::{Error, ErrorCode, Result};
use crate::transfer;

pub(super) struct Core;

impl JobClass for Core {
    const NAME: &'static str = CORE_CLASS;
    type Request = CoreRequest;
    type Reply = CoreReply;

    async fn request(&self, mut ctx: RequestContext, request: CoreRequest) -> Result<CoreReply> {
        let node = ctx.node();
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
                let bytes = match transfer::handle(stream, &root).await? {
                    transfer::Outcome::Received { file, .. } | transfer::Outcome::Served { file, .. } => file.bytes,
                };
                CoreReply::File { bytes }
            }
        })
    }
}
