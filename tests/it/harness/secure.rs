//! A broker whose clients need TLS and a password.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{
    Kafka,
    broker::Broker,
    command::COMMAND_DEADLINE,
    node::free_ports,
    process::{Process, command, required},
};

/// The password of every user that [`SecureBroker`] knows.
pub const PASSWORD: &str = "right-and-secret";

const STORE_PASSWORD: &str = "changeit";

/// A broker with a listener for SASL over TLS, and a plain one for the test itself.
pub struct SecureBroker {
    broker: Broker,
    port: u16,
    dir: TempDir,
}

impl SecureBroker {
    /// Starts one that knows `plain` (mechanism PLAIN) and `scram` (mechanism SCRAM-SHA-256).
    pub async fn started() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = dir.path().join("broker.p12");
        create_certificate(&store).await;
        let authority = export_certificate(&store).await;
        std::fs::write(dir.path().join("ca.pem"), authority).expect("a writable directory");

        let [port] = free_ports();
        let broker = Broker::stopped();
        let properties = properties(broker.port(), port, &store);
        let mut broker = broker.properties(&properties);
        broker.start().await;
        create_scram_user(&broker).await;
        Self { broker, port, dir }
    }

    /// The plain listener.
    pub fn kafka(&self) -> Kafka {
        self.broker.kafka()
    }

    /// The listener for SASL over TLS.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate that the broker's own was signed with.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A file that holds a password, with the line's end that editors leave.
    pub fn password_file(&self, password: &str) -> PathBuf {
        let path = self.dir.path().join(format!("password-{password}"));
        std::fs::write(&path, format!("{password}\n")).expect("a writable directory");
        path
    }
}

fn properties(plain: u16, secure: u16, store: &Path) -> String {
    let controller = plain + 1;
    let jaas = "org.apache.kafka.common.security";
    let store = store.display();
    format!(
        "listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{secure}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256\n\
         listener.name.sasl_ssl.plain.sasl.jaas.config={jaas}.plain.PlainLoginModule required \
         user_plain=\"{PASSWORD}\";\n\
         listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={jaas}.scram.ScramLoginModule required;\n\
         ssl.keystore.type=PKCS12\n\
         ssl.keystore.location={store}\n\
         ssl.keystore.password={STORE_PASSWORD}\n"
    )
}

/// Java's own tool: whoever can run the broker has it.
fn keytool() -> Command {
    let java = required("KAFKA_JAVA");
    let java = std::fs::canonicalize(&java).unwrap_or_else(|error| panic!("{java}: {error}"));
    command(java.with_file_name("keytool"))
}

async fn create_certificate(store: &Path) {
    let mut command = keytool();
    command
        .args(["-genkeypair", "-alias", "broker", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "2"])
        .args(["-dname", "CN=broker", "-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "bc:c=ca:true"])
        .args(["-storetype", "PKCS12", "-storepass", STORE_PASSWORD, "-keystore"])
        .arg(store);
    Process::run("keytool", command, COMMAND_DEADLINE).await.ok();
}

async fn export_certificate(store: &Path) -> String {
    let mut command = keytool();
    command.args(["-exportcert", "-rfc", "-alias", "broker", "-storepass", STORE_PASSWORD, "-keystore"]).arg(store);
    Process::run("keytool", command, COMMAND_DEADLINE).await.ok()
}

/// SCRAM's users live in the cluster's metadata.
async fn create_scram_user(broker: &Broker) {
    let mut command = command(required("KAFKA_JAVA"));
    command
        .env("CLASSPATH", format!("{}/*", required("KAFKA_LIBS")))
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "kafka.admin.ConfigCommand"])
        .args(["--bootstrap-server", &format!("127.0.0.1:{}", broker.port()), "--alter"])
        .args(["--entity-type", "users", "--entity-name", "scram"])
        .args(["--add-config", &format!("SCRAM-SHA-256=[password={PASSWORD}]")]);
    Process::run("kafka-configs", command, COMMAND_DEADLINE).await.ok();
}
