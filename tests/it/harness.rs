//! What the tests share: brokers, nodes and clients as real processes and real sockets.
//!
//! Nothing here knows the inside of the product; the only thing taken from its crate is the
//! generated protobuf. Everything that is started is killed when its value is dropped.

pub mod attack;
pub mod broker;
pub mod carrier;
pub mod certs;
pub mod check;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod dial;
pub mod event;
pub mod example;
pub mod frame;
pub mod grpc;
pub mod history;
pub mod http;
pub mod http2;
pub mod jwks;
pub mod kafka;
pub mod keys;
pub mod metrics;
pub mod node;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod raw;
pub mod script;
pub mod secure;
pub mod sse;
pub mod store;
pub mod token;
pub mod traffic;
pub mod wait;
pub mod ways;
pub mod ws;

pub use event::Event;
pub use kafka::{Feed, Kafka, Record};
pub use node::Node;
pub use store::Store;
pub use wait::eventually;
