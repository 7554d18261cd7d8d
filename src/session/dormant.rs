//! A session at rest: its client has everything and has nothing to say, so no actor has to run for it. What is left
//! of it stays with its user, or with the user's shard, until somebody wakes it.

use super::{Attachment, Start, State, What, metric, window::Window};
use crate::ids::{DeviceId, Sequence, SessionId};

/// What is left of a session at rest. If it is dropped, its connection attaches again.
pub struct Dormant {
    /// Its id.
    pub id: SessionId,
    /// The device, if the client named one.
    pub device: Option<DeviceId>,
    /// The connection, which nobody serves meanwhile.
    pub attachment: Attachment,
    sent: Sequence,
    window: Window,
    _counted: metric::Counted,
}

impl Dormant {
    /// Whether its connection is still there, and waits to be served.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.attachment.outlet.rests(self.attachment.number)
    }

    /// The last number that the client has, by frame or by gap.
    #[must_use]
    pub fn sent(&self) -> Sequence {
        self.sent
    }

    /// What its client has, and has not acknowledged; some can never do that.
    #[must_use]
    pub fn unacknowledged(&self) -> Option<(Sequence, Sequence)> {
        let first = self.window.acknowledged() + 1;
        (first <= self.sent).then_some((first, self.sent))
    }

    /// What an actor needs to go on with it, in a log that ends with this number.
    #[must_use]
    pub fn wake(self, head: Sequence) -> (Attachment, Start) {
        let Self { attachment, sent, window, .. } = self;
        (attachment, Start { after: sent, window, hello: None, gap: None, head })
    }
}

impl State {
    /// Whether nothing is under way, nothing waits, and nothing has to be done later.
    fn is_at_rest(&self) -> bool {
        let owes = self.sent < self.newest || self.latest.is_some() || self.untold_since.is_some();
        let waits = self.reading || self.outlet_full || self.window.oldest_unacknowledged().is_some();
        !self.gone && !owes && !waits
    }

    /// Lets go of the connection if there is nothing to do for it, and says so.
    pub(super) fn rest(&mut self) {
        let attachment = if self.is_at_rest() { self.attachment.rest(self.window.acknowledged()) } else { None };
        let Some(attachment) = attachment else { return self.tell(What::Busy) };
        self.rests = true;
        self.timer = None;
        let window = std::mem::replace(&mut self.window, Window::new(self.config.window, false));
        self.tell(What::Rests(Box::new(Dormant {
            id: self.id,
            device: self.device.clone(),
            attachment,
            sent: self.sent,
            window,
            _counted: metric::Counted::one(metric::Kind::Dormant),
        })));
    }
}

impl Attachment {
    /// Takes the connection from its session, which has seen this acknowledged, for whoever serves it next.
    fn rest(&self, acknowledged: Sequence) -> Option<Self> {
        let number = self.outlet.rest(self.number, acknowledged)?;
        Some(Self { outlet: self.outlet.clone(), number })
    }
}
