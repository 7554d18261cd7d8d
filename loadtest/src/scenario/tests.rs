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
        ("[disturbance]\nafter = \"1s\"\nhot_user_per_second = 1\nstalled_per_second = 1\n", "needs stalled_share"),
        (
            "[disturbance]\nafter = \"1s\"\nstalled_share = 0.1\nhot_user_per_second = 1\nstalled_per_second = 1\n",
            "not together with hot_user_per_second",
        ),
    ] {
        let said = error(&format!("{GOOD}{more}"));
        assert!(said.contains(what), "{said}");
    }
    let away = GOOD.replace("arrivals.constant = { per_second = 100, length = \"4s\" }", "away = 10");
    assert!(error(&away).contains("durable"));
}

const NODES: &str = "durability = \"durable\"\n[node]\nstore = \"postgres\"\n[nodes]\ncount = 3\n";

#[test]
fn nodes_that_do_not_fit_the_rest_are_named() {
    let kill = "fault.kill.after = \"1s\"\n";
    for (right, wrong, what) in [
        ("store = \"postgres\"", "store = \"sqlite\"", "nodes: they share a database"),
        ("count = 3", "count = 1", "nodes.fault: nodes.count must be one number above 1"),
        ("count = 3", "count = [2, 3]", "nodes.fault: nodes.count must be one number"),
        ("count = 3", "count = 3\nhops = [0, 1]", "nodes.hops: needs nodes.count = 2"),
        ("count = 3", "count = 2\nhops = [0, 3]", "0, 1 or 2 times"),
        ("count = 3", "count = 2\nhops = [0, 1]", "nodes.fault: not together"),
        ("durability = \"durable\"", "durability = \"transient\"", "others may be lost"),
        ("fault.kill.after = \"1s\"", "fault.kill.after = \"4s\"", "before the end of the arrivals"),
        (
            "fault.kill.after = \"1s\"",
            "fault.freeze = { after = \"1s\", length = \"3s\" }",
            "over before the end of the arrivals",
        ),
        ("fault.kill.after = \"1s\"", "fault.kill.afetr = \"1s\"", "afetr"),
        ("arrivals.constant = { per_second = 100, length = \"4s\" }", "backlog = 5", "nodes: needs events.arrivals"),
    ] {
        let said = error(&format!("{GOOD}{NODES}{kill}").replace(right, wrong));
        assert!(said.contains(what), "{wrong}: {said}");
    }
}

#[test]
fn each_number_of_nodes_and_of_hops_is_a_run_of_its_own() {
    let layouts = |more: &str| {
        let text = format!("{GOOD}{NODES}").replace("count = 3", more);
        let layouts = Scenario::parse("test", &text).unwrap().layouts();
        layouts.into_iter().map(|(layout, suffix)| (layout.nodes, layout.hops, suffix)).collect::<Vec<_>>()
    };
    assert_eq!(layouts("count = 3"), [(3, None, String::new())]);
    let growing = [(1, None, " on 1 nodes".to_owned()), (2, None, " on 2 nodes".to_owned())];
    assert_eq!(layouts("count = [1, 2]"), growing);
    let hops = [(2, Some(Hops::None), " over 0 hops".to_owned()), (2, Some(Hops::Two), " over 2 hops".to_owned())];
    assert_eq!(layouts("count = 2\nhops = [0, 2]"), hops);
}

#[test]
fn the_nodes_that_are_left_have_room_for_all() {
    let of = |more: &str| Scenario::parse("test", &format!("{GOOD}{NODES}{more}")).unwrap().sessions_of_a_node();
    assert_eq!(of(""), 4);
    assert_eq!(of("fault.kill.after = \"1s\"\n"), 5);
    assert_eq!(Scenario::parse("test", GOOD).unwrap().sessions_of_a_node(), 10);
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
        .replace("constant = { per_second = 100,", "ramp = { from = 50, to = 100,")
        + "[disturbance]\nafter = \"1s\"\nstalled_share = 0.1\nstalled_per_second = 30\n";
    let mut scenario = Scenario::parse("test", &text).unwrap();
    scenario.resize(Some(20), Some(10.0), Some(Duration::from_secs(2))).unwrap();
    assert_eq!(scenario.sessions.count.0, [2, 20]);
    let events = scenario.events.unwrap();
    assert_eq!(events.schedule().unwrap(), Schedule::default().then(5.0, 10.0, Duration::from_secs(2)));
    assert_eq!(events.warmup.0, Duration::from_millis(500));
    let disturbance = scenario.disturbance.unwrap();
    assert_eq!((disturbance.after.0, disturbance.stalled_per_second), (Duration::from_millis(500), Some(Rate(3.0))));
}
