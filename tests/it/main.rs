//! Black-box tests: the real program, real brokers, real sockets. One binary, so that it links once.
//!
//! `tests/run` provides what the tests need and says so when it is missing; see `tests/README.md`.

mod harness;

mod actors;
mod admin;
mod admission;
mod alerts;
mod api;
mod api_hostile;
mod attacks;
mod attacks_at_the_door;
mod auth;
mod auth_issuer;
mod auth_keys;
mod chart;
mod client_tls;
mod clients;
mod cluster;
mod cluster_api;
mod commands;
mod config;
mod conformance;
mod dead_letter;
mod delivery;
mod dev;
mod dormancy;
mod drain;
mod drain_late;
mod durable;
mod durable_faults;
mod durable_many;
mod durable_server;
mod edges;
mod examples;
mod forms;
mod grpc;
mod handshakes;
mod health;
mod hostile;
mod http;
mod kafka_faults;
mod limits;
mod liveness;
mod partitions;
mod pending;
mod protocols;
mod proxies;
mod rate_limits;
mod receipts;
mod sessions;
mod sse;
mod started;
mod states;
mod tls;
