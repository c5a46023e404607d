//! The store against a few maps in memory: random changes, with closing and opening anew, and with commits that find no
//! room, as operations. What fails is printed by proptest, made small, and is tried first from then on.

mod memory;

use proptest::{collection::vec, option, prelude::*, sample::Index};
use rusqlite::ffi;

use self::memory::Memory;
use super::support::{flush, open, submit};
use crate::store::{Need, check};

/// What can be done. Which one of several is meant is an index into what is there then.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Put {
        lane: u8,
        text: String,
        due: Option<u64>,
        count: usize,
    },
    Remove {
        which: Index,
    },
    /// Of neighbours those that are named, in either order.
    RemoveSome {
        first: Index,
        named: Vec<bool>,
        backwards: bool,
    },
    Note {
        which: Index,
        out: bool,
        due: Option<u64>,
    },
    Handed {
        lane: u8,
    },
    Append {
        partition: usize,
        timestamp: u64,
        count: u64,
    },
    Forget {
        partition: usize,
        count: u64,
        keep: Vec<Index>,
    },
    Unkeep {
        which: Index,
    },
    Progress {
        partition: usize,
        handed: u64,
    },
    Retry {
        partition: usize,
        which: Index,
        noted: bool,
    },
    Attempts {
        message: u8,
        noted: bool,
    },
    Mark {
        partition: u8,
        mark: Option<(u64, u64)>,
    },
    /// What was gathered is submitted.
    Submit,
    /// What was gathered finds no room.
    NoRoom,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let due = || option::weighted(0.3, 1_u64..1000);
    prop_oneof![
        8 => (0_u8..4, "[a-z]{0,300}", due(), 1_usize..6)
            .prop_map(|(lane, text, due, count)| Step::Put { lane, text, due, count }),
        2 => any::<Index>().prop_map(|which| Step::Remove { which }),
        2 => (any::<Index>(), vec(any::<bool>(), 1..12), any::<bool>())
            .prop_map(|(first, named, backwards)| Step::RemoveSome { first, named, backwards }),
        3 => (any::<Index>(), any::<bool>(), due()).prop_map(|(which, out, due)| Step::Note { which, out, due }),
        1 => (0_u8..4).prop_map(|lane| Step::Handed { lane }),
        3 => (0_usize..3, 0_u64..100, 1_u64..700)
            .prop_map(|(partition, timestamp, count)| Step::Append { partition, timestamp, count }),
        2 => (0_usize..3, 1_u64..900, vec(any::<Index>(), 0..3))
            .prop_map(|(partition, count, keep)| Step::Forget { partition, count, keep }),
        1 => any::<Index>().prop_map(|which| Step::Unkeep { which }),
        1 => (0_usize..3, 0_u64..900).prop_map(|(partition, handed)| Step::Progress { partition, handed }),
        2 => (0_usize..3, any::<Index>(), any::<bool>())
            .prop_map(|(partition, which, noted)| Step::Retry { partition, which, noted }),
        1 => (0_u8..3, any::<bool>()).prop_map(|(message, noted)| Step::Attempts { message, noted }),
        1 => (0_u8..3, option::of((0_u64..900, 0_u64..900)))
            .prop_map(|(partition, mark)| Step::Mark { partition, mark }),
        6 => Just(Step::Submit),
        1 => Just(Step::NoRoom),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_on_disk_is_what_was_done(steps in vec(step(), 1..120)) {
        let directory = tempfile::tempdir().unwrap();
        let mut store = open(directory.path());
        let mut memory = Memory::new(&store);
        // Changes that were not submitted yet, and what was there before them.
        let (mut changes, mut before) = (Vec::new(), memory.clone());
        for step in steps {
            match step {
                Step::Submit | Step::Reopen => {
                    drop(submit(&store, Need::MustHappen, std::mem::take(&mut changes)));
                    before = memory.clone();
                }
                Step::NoRoom => {
                    flush(&store).unwrap();
                    if !changes.is_empty() {
                        store.shared.faults.lock().unwrap().push(ffi::SQLITE_FULL);
                        let refused = submit(&store, Need::MayFail, std::mem::take(&mut changes));
                        prop_assert!(refused.blocking_recv().unwrap().is_err());
                        memory.undo(&before);
                    }
                }
                ref change => changes.extend(memory.apply(change)),
            }
            if let Step::Reopen = step {
                drop(store);
                store = open(directory.path());
                memory.compare(&store)?;
            }
        }
        drop(submit(&store, Need::MustHappen, changes));
        flush(&store).unwrap();
        memory.compare(&store)?;
        drop(store);
        let checked = check(directory.path()).unwrap();
        prop_assert!(checked.findings.is_empty(), "{:?}", checked.findings);
    }
}
