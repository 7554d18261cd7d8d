//! What the tests share: brokers, nodes and clients as real processes and real sockets.
//!
//! Nothing here knows the inside of the product; the only thing taken from its crate is the
//! generated protobuf. Everything that is started is killed when its value is dropped.

pub mod broker;
pub mod check;
pub mod command;
pub mod event;
pub mod frame;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod node;
pub mod process;
pub mod raw;
pub mod secure;
pub mod sse;
pub mod token;
pub mod wait;
pub mod ws;

pub use event::Event;
pub use kafka::{Feed, Kafka, Record};
pub use node::Node;
pub use wait::eventually;
