//! Black-box tests: the real program, real brokers, real sockets. One binary, so that it links once.
//!
//! `tests/run` provides what the tests need and says so when it is missing; see `tests/README.md`.

mod harness;

mod actors;
mod admin;
mod admission;
mod auth;
mod clients;
mod commands;
mod config;
mod dead_letter;
mod delivery;
mod dev;
mod drain;
mod drain_late;
mod edges;
mod floods;
mod forms;
mod hostile;
mod http;
mod kafka_faults;
mod limits;
mod liveness;
mod partitions;
mod pending;
mod sessions;
mod sse;
mod tls;
