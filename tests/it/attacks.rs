//! A good client does not notice an attack. Each test is a row: how many attackers, and what each does.

use std::time::{Duration, Instant};

use crate::{
    harness::{
        Event, Feed, Node,
        attack::{Attack, Attacker},
        eventually,
        http::{Request, open},
        raw::{End, FIN, RawWs, frame, opcode},
    },
    hostile::violations,
};

/// Frames in one write of a flood.
const CHUNK: usize = 1024;
const MILLION: usize = 1_000_000;
/// Between two writes of one attacker: together some hundred thousand frames a second.
const PAUSE: Duration = Duration::from_millis(20);

/// Writes the same again and again, and reads nothing.
async fn flood(attacker: &mut Attacker, mut peer: RawWs, chunk: &[u8], pause: Duration) {
    while peer.is_taken(chunk).await {
        attacker.strike().await;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Two rows: a flood of that frame behind a beginning, at a pace at which nobody may notice, and as fast as it goes. So
/// many frames have to get out at that pace.
async fn flood_of(beginning: Vec<u8>, frame: Vec<u8>, frames_min: usize) {
    let chunk = frame.repeat(CHUNK);
    let turn = |pause| {
        let (beginning, chunk) = (beginning.clone(), chunk.clone());
        async move |attacker: &mut Attacker| {
            let mut peer = attacker.websocket().await;
            peer.write(&beginning).await;
            flood(attacker, peer, &chunk, pause).await;
        }
    };
    Attack::by_many().at_least(frames_min / CHUNK).harms_nobody(turn(PAUSE)).await;
    Attack::by_many().at_full_speed().harms_nobody(turn(Duration::ZERO)).await;
}

#[tokio::test]
async fn pings_from_clients_that_read_nothing() {
    flood_of(Vec::new(), frame(FIN | opcode::PING, &[b'x'; 125]), 10 * CHUNK).await;
}

#[tokio::test]
async fn pongs_that_nobody_asked_for() {
    flood_of(Vec::new(), frame(FIN | opcode::PONG, b""), MILLION).await;
}

#[tokio::test]
async fn repeated_acknowledgements() {
    flood_of(Vec::new(), frame(FIN | opcode::TEXT, br#"{"ack":0}"#), MILLION).await;
}

#[tokio::test]
async fn messages_of_fragments_of_one_byte() {
    flood_of(frame(opcode::TEXT, b"{"), frame(opcode::CONTINUATION, b" "), MILLION).await;
}

#[tokio::test]
async fn empty_fragments_of_messages_without_end() {
    flood_of(frame(opcode::TEXT, b"{"), frame(opcode::CONTINUATION, b""), MILLION).await;
}

#[tokio::test]
async fn pings_from_clients_that_read_all_answers() {
    let chunk = frame(FIN | opcode::PING, &[b'x'; 125]).repeat(64);
    let turn = async move |attacker: &mut Attacker| {
        let mut peer = attacker.websocket().await;
        while peer.is_taken(&chunk).await && peer.skip(1 << 20).await {
            attacker.strike().await;
            tokio::time::sleep(PAUSE).await;
        }
    };
    Attack::by_many().harms_nobody(turn).await;
}

#[tokio::test]
async fn bytes_on_an_event_stream() {
    let turn = |pause| {
        async move |attacker: &mut Attacker| {
            let authorization = format!("Bearer {}", attacker.token());
            let headers = [("Authorization", authorization.as_str())];
            let request = Request { method: "GET", path: "/v1/stream", headers: &headers, body: "" };
            let opened = open(attacker.addr, request).await.expect("the client port answers");
            assert_eq!(opened.head.status, 200, "{:?}", opened.head);
            flood(attacker, RawWs::from(opened), &[b'x'; 1 << 14], pause).await;
        }
    };
    Attack::by_many().harms_nobody(turn(PAUSE)).await;
    Attack::by_many().at_full_speed().harms_nobody(turn(Duration::ZERO)).await;
}

#[tokio::test]
async fn everything_that_breaks_the_protocol() {
    let violations = violations();
    let turn = async move |attacker: &mut Attacker| {
        for (what, code, bytes) in &violations {
            attacker.strike().await;
            let mut peer = attacker.websocket().await;
            peer.write(bytes).await;
            assert_eq!(peer.end().await, End::Code(*code), "{what}");
            // A hundred connects a second, together: how many the node lets in is another test's.
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    Attack::by(4).harms_nobody(turn).await;
}

/// Large enough for a few of them to fill a socket.
fn large() -> Event {
    Event::new("", "large").data(&format!("\"{}\"", "x".repeat(8 << 10)))
}

#[tokio::test]
async fn clients_that_never_read() {
    let turn = async |attacker: &mut Attacker| {
        let mut peer = attacker.websocket().await;
        // Until the server has had enough, which shows in a write some time after it has closed.
        while peer.is_taken(&frame(FIN | opcode::PONG, b"")).await {
            attacker.strike().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    Attack::by_many().set("sessions.slow_deadline", "2s").with_events(large()).harms_nobody(turn).await;
}

#[tokio::test]
async fn clients_that_read_one_byte_a_second() {
    let turn = async |attacker: &mut Attacker| {
        let mut peer = attacker.websocket().await;
        while peer.skip(1).await {
            attacker.strike().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    Attack::by_many().set("sessions.slow_deadline", "2s").with_events(large()).harms_nobody(turn).await;
}

#[tokio::test]
async fn clients_that_send_one_byte_at_a_time() {
    let turn = async |attacker: &mut Attacker| {
        let mut peer = attacker.websocket().await;
        let acks = frame(FIN | opcode::TEXT, br#"{"ack":0}"#);
        for byte in acks.iter().cycle() {
            attacker.strike().await;
            if !peer.is_taken(&[*byte]).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    Attack::by(64).harms_nobody(turn).await;
}

/// The CPU time that a process has used.
fn cpu(pid: u32) -> Duration {
    /// `sysconf(_SC_CLK_TCK)` on every Linux of today.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The second field, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').expect("proc(5)");
    let field = |index: usize| rest.split_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
    let (user, system) = (field(11).expect("utime"), field(12).expect("stime"));
    Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND)
}

#[tokio::test]
async fn clients_that_ignore_their_close_cost_no_cpu_even_when_events_arrive_for_them() {
    const WINDOW: Duration = Duration::from_secs(2);
    const HOSTILE: usize = 6;
    const CPU_MAX: Duration = Duration::from_millis(500);
    // Named: what it is; the opcode and the payload that are sent.
    let garbage: [(&str, u8, &[u8]); 4] = [
        ("a reserved opcode", 3, b"x"),
        ("text that is no acknowledgement", opcode::TEXT, b"hello"),
        ("text that is not UTF-8", opcode::TEXT, b"\xff\xfe"),
        ("a binary frame", 2, b"x"),
    ];
    for (what, opcode, payload) in garbage {
        let feed = Feed::new(1).await;
        let mut node = Node::start(&feed).await;
        let mut hostile = Vec::new();
        for _ in 0..HOSTILE {
            let mut peer = RawWs::open(node.addr(), &node.token("101")).await;
            peer.send(opcode, payload).await;
            // And something behind it that nobody will read as frames.
            peer.write(&[0xff; 2000]).await;
            hostile.push(peer);
        }
        let pid = node.process().id();
        let (before, started) = (cpu(pid), Instant::now());
        let mut n = 0;
        while started.elapsed() < WINDOW {
            feed.send(&Event::numbered("101", n)).await;
            n += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let used = cpu(pid) - before;
        assert!(used < CPU_MAX, "{what}: {used:?} of CPU in {WINDOW:?}");
        // They do not stay for ever either.
        eventually("no connections", async || (node.metrics().await.sum("notifier_connections") == 0.0).then_some(()))
            .await;
        drop(hostile);
    }
}
