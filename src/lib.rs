//! Notifier: delivers what services write to Kafka to every open session of a user, in order and without loss.
//!
//! The modules stand in the order of their floors, lowest first: each names only those above it in this list.
//! `ARCHITECTURE.md` says what each is for and what it deliberately does not know.

#![deny(unsafe_code)]
#![warn(missing_docs)]

// Values and pure logic.
pub mod backoff;
pub mod cluster;
pub mod event;
#[cfg(test)]
pub(crate) mod fakes;
pub mod health;
pub mod ids;
pub mod lock;
#[cfg(feature = "mutants")]
mod mutant;
pub mod placement;
mod problem;
pub mod proto;
pub mod receipt;
pub mod settlement;
pub mod state;
pub mod wire;

// What a node is configured with, and what it stands on.
pub mod auth;
pub mod config;
mod credential;
mod document;
pub mod embedded_broker;
pub mod kafka;
pub mod store;

// The actors, from the session up.
pub mod session;
pub mod user;

pub mod shard;

pub mod router;

// Events and clients in.
pub mod admin;
pub mod edge;
pub mod ingest;
pub mod link;
pub mod member;
pub mod receipts;

// Over both of them: events in through the edge's port.
pub mod api;

// The node and its commands.
pub mod node;
pub mod telemetry;

pub mod cli;
