//! What `notifier dev` adds to a node.

/// Routes of its own, and what it knows of its broker.
#[derive(Default)]
pub struct Dev {
    /// Served on the client port.
    pub routes: axum::Router,
    /// The broker is a new one at each start: that positions are of another cluster is nothing to be warned of.
    pub embedded_broker: bool,
}
