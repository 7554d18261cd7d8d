//! How a node is called: itself, or through a third one that reaches it. Who passes a call on does so once, to the node
//! itself, and looks at nothing that goes through: to the two at its ends it is a link like any other, which breaks, and
//! loses what was under way, when its way changes.

use std::{error, io, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{AsciiMetadataValue, BinaryMetadataValue},
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{
    Identity, PING_ANSWER, PING_EVERY, Tls, Versions, WINDOW,
    server::{FROM, SECRET, THROUGH, TO, VERSION},
    wire::{OpenRequest, OpenResponse, service::link_client::LinkClient},
};
use crate::ids::Incarnation;

/// Messages that the transport has not taken.
const REQUESTS: usize = 2;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a call may take, until the one who is called has answered.
const CALL: Duration = Duration::from_secs(2);

/// Why there is no link any more.
pub(super) enum Broken {
    /// Nothing listens there, or somebody else answers.
    Refused(String),
    /// This node was declared dead, says the peer.
    Dead,
    /// The two do not know the same secret.
    Stranger,
    /// The two do not speak a version in common.
    Foreign(String),
    Other(String),
}

impl Broken {
    fn other(error: &(dyn error::Error + 'static)) -> Self {
        Self::Other(text(error))
    }

    fn said(identity: &Identity, status: &Status) -> Self {
        match status.code() {
            Code::FailedPrecondition => Self::Refused(status.message().to_owned()),
            Code::PermissionDenied => Self::Dead,
            Code::Unauthenticated => Self::Stranger,
            Code::Unimplemented if status.metadata().contains_key(VERSION) => {
                Self::Foreign(status.message().to_owned())
            }
            _ => match error::Error::source(status) {
                // With TLS 1.3 who calls hears only now what the other side makes of its certificate, if it hears it.
                Some(error) => {
                    let certificate =
                        if identity.tls.is_some() { "trust this node's certificate" } else { "want a certificate" };
                    let error = text(error);
                    Self::Other(format!("it ended the connection without an answer; does it {certificate}? {error}"))
                }
                None => Self::Other(status.to_string()),
            },
        }
    }
}

/// A link that was made.
pub(super) struct Made {
    pub(super) requests: mpsc::Sender<OpenRequest>,
    pub(super) responses: Streaming<OpenResponse>,
    /// Who passes it on.
    pub(super) through: Option<Incarnation>,
    /// What is spoken.
    pub(super) version: u32,
}

/// Who calls whom, and through whom.
pub(super) struct Call {
    pub(super) from: Incarnation,
    pub(super) to: Incarnation,
    pub(super) through: Option<Incarnation>,
    /// What whoever passes it on speaks, too: what it does not know would be lost on the way.
    pub(super) versions: Versions,
}

impl Call {
    /// Opens the stream; which version is spoken on it.
    async fn open(
        &self,
        identity: &Identity,
        channel: Channel,
        requests: impl Stream<Item = OpenRequest> + Send + 'static,
    ) -> Result<(Streaming<OpenResponse>, u32), Status> {
        let mut request = Request::new(requests);
        let ascii = |text: String| AsciiMetadataValue::try_from(text).expect("hexadecimal digits");
        let metadata = request.metadata_mut();
        metadata.insert(FROM, ascii(self.from.to_string()));
        metadata.insert(TO, ascii(self.to.to_string()));
        if let Some(through) = self.through {
            metadata.insert(THROUGH, ascii(through.to_string()));
        }
        metadata.insert(VERSION, self.versions.header());
        metadata.insert_bin(SECRET, BinaryMetadataValue::from_bytes(identity.secret.as_bytes()));
        let mut client = LinkClient::new(channel).max_decoding_message_size(usize::MAX);
        let opened = client.open(request).await?;
        let version = opened.metadata().get(VERSION).and_then(|text| text.to_str().ok()?.parse().ok());
        // Who does not say it is of the first release, which had one version and did not look at the caller's.
        let version = version.unwrap_or(1);
        if self.versions.has(version) {
            return Ok((opened.into_inner(), version));
        }
        let mut status =
            Status::unimplemented(format!("it speaks version {version} of the link, this node {}", self.versions));
        status.metadata_mut().insert(VERSION, version.into());
        Err(status)
    }
}

/// Calls a node itself. Cancel safe.
pub(super) async fn connect(identity: &Identity, to: Incarnation, address: &str) -> Result<Made, Broken> {
    call(identity, Call { from: identity.me, to, through: None, versions: identity.versions }, address).await
}

/// Calls a node through a third one, at an address of that one. Cancel safe.
pub(super) async fn connect_through(
    identity: &Identity,
    to: Incarnation,
    third: Incarnation,
    address: &str,
) -> Result<Made, Broken> {
    let through = Call { from: identity.me, to, through: Some(third), versions: identity.versions };
    let made = call(identity, through, address).await;
    made.map_err(|broken| match broken {
        Broken::Dead => Broken::Dead,
        // Of the third one, or what that one heard: it knows itself what to make of it.
        Broken::Refused(why) | Broken::Foreign(why) | Broken::Other(why) => Broken::Other(why),
        Broken::Stranger => Broken::Other("another secret".into()),
    })
}

async fn call(identity: &Identity, call: Call, address: &str) -> Result<Made, Broken> {
    let opening = async {
        let channel = channel(identity, address).await?;
        let (requests, queue) = mpsc::channel(REQUESTS);
        let opened = call.open(identity, channel, ReceiverStream::new(queue)).await;
        let (responses, version) = opened.map_err(|status| Broken::said(identity, &status))?;
        Ok(Made { requests, responses, through: call.through, version })
    };
    timeout(CALL, opening).await.unwrap_or_else(|_| Err(Broken::Other("no answer in time".into())))
}

/// Calls a node for another one: what comes from each of them goes to the other.
///
/// # Errors
/// When it is not reached, or does not want that.
pub(super) async fn pass_on(
    identity: &Identity,
    call: Call,
    addresses: &[String],
    requests: Streaming<OpenRequest>,
) -> Result<(Streaming<OpenResponse>, u32), Status> {
    let to = call.to;
    let unavailable = |why: &str| Status::unavailable(format!("{to} is not reached from {}: {why}", identity.me));
    let opening = async {
        let mut connected = Err(unavailable("it has no address"));
        for address in addresses {
            connected = channel(identity, address).await.map_err(|_| unavailable("no connection"));
            if connected.is_ok() {
                break;
            }
        }
        // An error is the caller's end.
        let requests = requests.map_while(Result::ok);
        let opened = call.open(identity, connected?, requests).await;
        opened.map_err(|status| match Broken::said(identity, &status) {
            Broken::Dead => status,
            _ => unavailable(status.message()),
        })
    };
    timeout(CALL, opening).await.unwrap_or_else(|_| Err(unavailable("no answer in time")))
}

async fn channel(identity: &Identity, address: &str) -> Result<Channel, Broken> {
    let scheme = if identity.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|error| Broken::other(&error))?;
    if let Some(Tls { identity, authority }) = &identity.tls {
        let tls = ClientTlsConfig::new().identity(identity.clone()).ca_certificate(authority.clone());
        endpoint = endpoint.tls_config(tls).map_err(|error| Broken::other(&error))?;
    }
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    endpoint.connect().await.map_err(|error| {
        let refused = causes(&error).any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
        match causes(&error).find_map(tls_error) {
            _ if refused => Broken::Refused(error.to_string()),
            Some(error) => Broken::Other(format!("TLS with it fails: {error}")),
            None => Broken::other(&error),
        }
    })
}

fn tls_error<'e>(cause: &'e (dyn error::Error + 'static)) -> Option<&'e rustls::Error> {
    let inner = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(inner)
}

/// An error and its causes, as far as they say more.
fn text(error: &(dyn error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn causes<'e>(error: &'e (dyn error::Error + 'static)) -> impl Iterator<Item = &'e (dyn error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
