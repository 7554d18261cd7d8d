//! `CommandHandler`: sessions started ahead of their connection, and ended.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{credential, field, generated::command_handler_server};
use crate::{
    edge::{Carrier, Shared},
    proto::{EndUserSessionRequest, EndUserSessionResponse, StartUserSessionRequest, StartUserSessionResponse},
    wire,
};

/// The service.
pub(super) struct Commands(Arc<Shared>);

impl Commands {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

#[tonic::async_trait]
impl command_handler_server::CommandHandler for Commands {
    async fn start_user_session(
        &self,
        request: Request<StartUserSessionRequest>,
    ) -> Result<Response<StartUserSessionResponse>, Status> {
        let (metadata, extensions, StartUserSessionRequest { user_id }) = request.into_parts();
        let credential = credential(&metadata).unwrap_or_default();
        let started = self.0.start_session(credential, field(&user_id)).await?;
        extensions.get::<Carrier>().inspect(|carrier| carrier.identify());
        Ok(Response::new(StartUserSessionResponse {
            session_id: started.session.to_string(),
            expires_at: Some(wire::protobuf_time(started.expires_at)),
        }))
    }

    async fn end_user_session(
        &self,
        request: Request<EndUserSessionRequest>,
    ) -> Result<Response<EndUserSessionResponse>, Status> {
        let (metadata, extensions, EndUserSessionRequest { session_id, user_id }) = request.into_parts();
        let credential = credential(&metadata).unwrap_or_default();
        match field(&user_id) {
            Some(user) => self.0.end_sessions(credential, user, Some(&session_id)).await?,
            None => self.0.end_session(credential, &session_id).await?,
        }
        extensions.get::<Carrier>().inspect(|carrier| carrier.identify());
        Ok(Response::new(EndUserSessionResponse {}))
    }
}
