//! Views as a test needs them; what each type decides; and many nodes at once, under faults.

mod arrival;
mod changes;
mod interleavings;
mod parts;
mod simulation;
pub(crate) mod table;
mod world;

use std::{num::NonZeroU8, time::Duration};

use self::table::Table;
use super::{
    changes::Change,
    table::Changed,
    view::{Node, View},
};
use crate::ids::{Incarnation, NodeId};

/// The same one for the same number.
pub(super) fn incarnation(number: u64) -> Incarnation {
    Incarnation::parse(&format!("{:032x}", u128::from(number) << 64 | 1)).unwrap()
}

pub(super) fn node(id: &str, number: u64) -> Node {
    Node {
        id: NodeId::new(id).unwrap(),
        incarnation: incarnation(number),
        addresses: vec![format!("{id}:8003")],
        zone: String::new(),
        weight: NonZeroU8::MIN,
        is_alone: false,
    }
}

/// A table with so many active members, numbered from 0 in the order in which they joined.
pub(super) fn table_of(members: u64) -> Table {
    let mut table = Table::default();
    for number in 0..members {
        let join = table.view(Duration::ZERO).join(node(&format!("n{number}"), number), &[]).unwrap();
        apply(&mut table, &join);
        let activate = table.view(Duration::ZERO).activate(incarnation(number)).unwrap();
        apply(&mut table, &activate);
    }
    table
}

pub(super) fn view(members: u64) -> View {
    table_of(members).view(Duration::ZERO)
}

pub(super) fn apply(table: &mut Table, change: &Change) {
    assert!(matches!(table.change(change, Duration::ZERO), Changed::Done(_)), "{change:?}");
}

/// The view that a change leads to.
pub(super) fn after(view: &View, change: Change) -> View {
    view.after(&change).unwrap()
}

pub(super) fn living(view: &View) -> Vec<Incarnation> {
    view.living().map(|member| member.node.incarnation).collect()
}
