//! Kafka over TLS with a password: properties passed through, and a wrong password named.

use crate::harness::{
    Event, Feed, Node, Record, eventually,
    node::Builder,
    secure::{PASSWORD, SecureBroker},
};

fn builder(broker: &SecureBroker, feed: &Feed, mechanism: &str, user: &str, password: &str) -> Builder {
    let path = |path: std::path::PathBuf| path.to_str().expect("UTF-8").to_owned();
    Node::builder(feed)
        .set("kafka.brokers", broker.address())
        .property("security.protocol", "SASL_SSL")
        .property("ssl.ca.location", &path(broker.authority()))
        .property("sasl.mechanism", mechanism)
        .property("sasl.username", user)
        .property("sasl.password_file", &path(broker.password_file(password)))
}

#[tokio::test]
async fn events_positions_and_dead_letters_pass_through_sasl_over_tls() {
    let broker = SecureBroker::started().await;
    for (mechanism, user) in [("PLAIN", "plain"), ("SCRAM-SHA-256", "scram")] {
        let feed = Feed::on(&broker.kafka(), 1).await;
        let node = builder(&broker, &feed, mechanism, user, PASSWORD).start().await;
        let mut client = node.connect("101").await;
        feed.send(&Event::new("101", mechanism)).await;
        assert_eq!(client.one().await.kind, mechanism);
        // The producer of dead letters has the same properties.
        feed.put(&Record::new("{broken")).await;
        feed.dead_letters(1).await;
        feed.all_committed().await;
        assert!(!node.log().contains(PASSWORD), "the password was logged");
    }
}

#[tokio::test]
async fn a_wrong_password_is_named_and_the_node_keeps_running() {
    let broker = SecureBroker::started().await;
    for (mechanism, user) in [("PLAIN", "plain"), ("SCRAM-SHA-256", "scram")] {
        let feed = Feed::on(&broker.kafka(), 1).await;
        let mut node = builder(&broker, &feed, mechanism, user, "wrong").start_unready();
        eventually("the failed authentication named", async || {
            let readiness = node.try_admin("/readyz").await?;
            let said = format!("{} {}", readiness.body, node.log()).to_lowercase();
            (readiness.status() == 503 && said.contains("authentication fail")).then_some(())
        })
        .await;
        assert_eq!(node.admin("/livez").await.status(), 200);
        assert!(node.process().running());
        // Clients are served all the same.
        node.connect("101").await;
        node.stop().await.ok();
    }
}
