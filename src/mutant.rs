//! Mistakes that are made on purpose, one at a time, so that a test can show that it finds them. Only builds with the
//! feature `mutants` have them; `NOTIFIER_MUTANT` says which.

/// A mistake.
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "some are asked for only where they may be made"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// An event counts as settled before its row is committed.
    SettlesEarly,
    /// Whoever believes to own a shard may write.
    Unfenced,
    /// A connection that comes back goes on one number too late.
    SkipsOne,
    /// After a loss, later events of a user are taken before the lost ones.
    TakesLater,
}

/// Whether this mistake is made.
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| match std::env::var("NOTIFIER_MUTANT").ok()?.as_str() {
        "settles-early" => Some(Mutant::SettlesEarly),
        "unfenced" => Some(Mutant::Unfenced),
        "skips-one" => Some(Mutant::SkipsOne),
        "takes-later" => Some(Mutant::TakesLater),
        other => panic!("NOTIFIER_MUTANT: there is no mutant {other}"),
    });
    *chosen == Some(mutant)
}
