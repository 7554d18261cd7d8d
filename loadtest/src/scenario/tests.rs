use super::*;

const GOOD: &str = r#"question = "?"
[sessions]
count = 10
[events]
arrivals.constant = { per_second = 100, length = "4s" }
"#;

fn error(text: &str) -> String {
    format!("{:#}", Scenario::parse("test", text).unwrap_err())
}

#[test]
fn what_comes_with_the_tool_is_whole_and_asks_something() {
    for (name, text) in Scenario::bundled() {
        let scenario = Scenario::parse(name, text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert!(scenario.question.ends_with('?'), "{name}");
    }
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap().count();
    assert_eq!(files, Scenario::bundled().count(), "each file in scenarios/ comes with the tool");
}

#[test]
fn a_typo_is_named_with_its_line() {
    for (right, wrong, line, key) in [
        ("count = 10", "coutn = 10", "line 3", "coutn"),
        ("[events]", "[evnets]", "line 4", "evnets"),
        ("per_second", "per_sec", "line 5", "per_sec"),
        ("constant", "constnat", "line 5", "constnat"),
    ] {
        let said = error(&GOOD.replace(right, wrong));
        let (source, message) = said.rsplit_once("^\n").expect("a place and a message");
        assert!(source.contains(line) && message.contains(key), "{said}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_line() {
    for (right, wrong, line, what) in [
        ("count = 10", "count = 0", "line 3", "from 1 to"),
        ("count = 10", "count = [5, 3]", "line 3", "that rise"),
        ("per_second = 100", "per_second = -1", "line 5", "above 0"),
        ("\"4s\"", "\"4 parsecs\"", "line 5", "no time"),
        ("\"4s\"", "\"0s\"", "line 5", "above 0"),
    ] {
        let said = error(&GOOD.replace(right, wrong));
        assert!(said.contains(line) && said.contains(what), "{said}");
    }
}

#[test]
fn keys_that_do_not_fit_together_are_named() {
    for (more, what) in [
        ("backlog = 5\n", "exactly one of"),
        ("warmup = \"5s\"\n", "events.warmup"),
        ("bytes = 10\n", "events.bytes"),
        ("[disturbance]\nafter = \"3s\"\nstalled_share = 0.1\n", "disturbance.after"),
        ("[disturbance]\nafter = \"1s\"\n", "hot_user_per_second or stalled_share"),
    ] {
        let said = error(&format!("{GOOD}{more}"));
        assert!(said.contains(what), "{said}");
    }
    let away = GOOD.replace("arrivals.constant = { per_second = 100, length = \"4s\" }", "away = 10");
    assert!(error(&away).contains("durable"));
}

#[test]
fn every_form_of_arrivals_is_read() {
    for (form, expected, seconds) in [
        ("arrivals.poisson = { per_second = 10, length = \"4s\" }", 40, 4),
        ("arrivals.ramp = { from = 10, to = 30, length = \"4s\" }", 80, 4),
        ("arrivals.step = { per_second = [10, 20], each = \"2s\" }", 60, 4),
        ("arrivals.spike = { per_second = 10, peak = 100, peak_length = \"2s\", length = \"6s\" }", 240, 6),
    ] {
        let text = GOOD.replace("arrivals.constant = { per_second = 100, length = \"4s\" }", form);
        let schedule = Scenario::parse("test", &text).unwrap().events.unwrap().schedule().unwrap();
        assert_eq!((schedule.expected(), schedule.length()), (expected, Duration::from_secs(seconds)), "{form}");
    }
    let zipf = format!("{GOOD}users.zipf = 1.1\n");
    assert!(matches!(Scenario::parse("test", &zipf).unwrap().events.unwrap().users, Pick::Zipf(_)));
}

#[test]
fn a_smaller_size_keeps_the_shape() {
    let text = GOOD
        .replace("count = 10", "count = [10, 100]")
        .replace("constant = { per_second = 100,", "ramp = { from = 50, to = 100,");
    let mut scenario = Scenario::parse("test", &text).unwrap();
    scenario.resize(Some(20), Some(10.0), Some(Duration::from_secs(2))).unwrap();
    assert_eq!(scenario.sessions.count.0, [2, 20]);
    let events = scenario.events.unwrap();
    assert_eq!(events.schedule().unwrap(), Schedule::default().then(5.0, 10.0, Duration::from_secs(2)));
    assert_eq!(events.warmup.0, Duration::from_millis(500));
}
