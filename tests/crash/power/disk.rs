//! A disk that may lose what was not synced. In: changes, one after the other. Out: what the files may look like if the
//! power fails now.
//!
//! What it takes for granted: a successful sync makes all earlier changes of its file safe, a sync of the directory all
//! earlier names. Of other changes each may be there, or not, or in part, in any grain, whatever became of those before
//! it; names are made safe in their order. After a sync that failed, what it was to make safe stays in doubt for ever:
//! the system holds it for written and does not write it again.

use std::{collections::BTreeMap, fs, path::Path};

use super::trace::{Op, Trace};
use crate::random::Random;

/// What becomes of changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Dropped,
    Kept,
    /// Each is kept, dropped, or torn: of every so many bytes chance decides.
    Mixed {
        grain: usize,
    },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<u32, File>,
    /// Names that are safe, each with its file.
    names: BTreeMap<String, u32>,
    /// Changes of names that are not.
    renaming: Vec<Name>,
}

#[derive(Clone, Debug, Default)]
struct File {
    safe: Vec<u8>,
    /// What came after, in order.
    later: Vec<(Change, State)>,
}

/// A change of a file's content; bytes are a place in the trace.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, from: usize, to: usize },
    Length(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Safe,
    Waiting,
    Doubtful,
}

#[derive(Clone, Debug)]
enum Name {
    Made(String, u32),
    Removed(String),
    Renamed(String, String),
}

impl Disk {
    /// The next change happens.
    pub(crate) fn apply(&mut self, op: &Op, bytes: &[u8]) {
        match op {
            Op::Made { file, name } => self.renaming.push(Name::Made(name.clone(), *file)),
            Op::Opened { .. } => {}
            Op::Written { file, offset, data } => {
                let change = Change::Write { offset: *offset as usize, from: data.start, to: data.end };
                self.change(*file, change);
            }
            Op::Length { file, length } => self.change(*file, Change::Length(*length as usize)),
            Op::Synced { file } => self.files.entry(*file).or_default().sync(bytes),
            Op::SyncFailed { file } => {
                for (_, state) in &mut self.files.entry(*file).or_default().later {
                    if *state == State::Waiting {
                        *state = State::Doubtful;
                    }
                }
            }
            Op::DirectorySynced { name } => {
                let (safe, waiting): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.renaming).into_iter().partition(|change| change.is_in(name));
                self.renaming = waiting;
                for change in safe {
                    change.apply(&mut self.names);
                }
            }
            Op::Removed { name } => self.renaming.push(Name::Removed(name.clone())),
            Op::Renamed { from, to } => self.renaming.push(Name::Renamed(from.clone(), to.clone())),
        }
    }

    fn change(&mut self, file: u32, change: Change) {
        self.files.entry(file).or_default().later.push((change, State::Waiting));
    }

    /// The files as they may be found.
    pub(crate) fn image(&self, unsynced: Unsynced, bytes: &[u8], random: &mut Random) -> BTreeMap<String, Vec<u8>> {
        let mut names = self.names.clone();
        let count = match unsynced {
            Unsynced::Dropped => 0,
            Unsynced::Kept => self.renaming.len(),
            Unsynced::Mixed { .. } => random.between(0, self.renaming.len() as u64 + 1) as usize,
        };
        for name in &self.renaming[..count] {
            name.clone().apply(&mut names);
        }
        let content = |file: &u32| self.files.get(file).cloned().unwrap_or_default();
        names.iter().map(|(name, file)| (name.clone(), content(file).cut_off(unsynced, bytes, random))).collect()
    }
}

impl File {
    fn sync(&mut self, bytes: &[u8]) {
        for (_, state) in &mut self.later {
            if *state == State::Waiting {
                *state = State::Safe;
            }
        }
        // What is in doubt has to stay before what came after it.
        let safe = self.later.iter().take_while(|(_, state)| *state == State::Safe).count();
        for (change, _) in self.later.drain(..safe) {
            change.apply(&mut self.safe, bytes);
        }
    }

    fn cut_off(self, unsynced: Unsynced, bytes: &[u8], random: &mut Random) -> Vec<u8> {
        let mut content = self.safe;
        for (change, state) in self.later {
            let fate = match unsynced {
                _ if state == State::Safe => 1,
                Unsynced::Dropped => 0,
                Unsynced::Kept => 1,
                Unsynced::Mixed { .. } => random.between(0, 3),
            };
            match (fate, unsynced) {
                (0, _) => {}
                (2, Unsynced::Mixed { grain }) => change.tear(&mut content, bytes, grain, || random.once_in(2)),
                _ => change.apply(&mut content, bytes),
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>, bytes: &[u8]) {
        match *self {
            Self::Write { offset, from, to } => {
                let end = offset + to - from;
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[offset..end].copy_from_slice(&bytes[from..to]);
            }
            Self::Length(length) => content.resize(length, 0),
        }
    }

    /// Carries out those of its blocks that are kept; blocks lie on the disk as its own do, however the write lies in them.
    fn tear(&self, content: &mut Vec<u8>, bytes: &[u8], grain: usize, mut kept: impl FnMut() -> bool) {
        let Self::Write { offset, from, to } = *self else {
            if kept() {
                self.apply(content, bytes);
            }
            return;
        };
        let (mut offset, mut from) = (offset, from);
        while from < to {
            let next = (from + grain - offset % grain).min(to);
            if kept() {
                Self::Write { offset, from, to: next }.apply(content, bytes);
            }
            (offset, from) = (offset + next - from, next);
        }
    }
}

impl Name {
    /// Whether it is of a file in that directory.
    fn is_in(&self, directory: &str) -> bool {
        let (Self::Made(name, _) | Self::Removed(name) | Self::Renamed(_, name)) = self;
        name.rsplit_once('/').map_or("", |(directory, _)| directory) == directory
    }

    fn apply(self, names: &mut BTreeMap<String, u32>) {
        match self {
            Self::Made(name, file) => {
                names.insert(name, file);
            }
            Self::Removed(name) => {
                names.remove(&name);
            }
            Self::Renamed(from, to) => {
                if let Some(file) = names.remove(&from) {
                    names.insert(to, file);
                }
            }
        }
    }
}

/// Writes files into a directory.
pub(crate) fn write(image: &BTreeMap<String, Vec<u8>>, directory: &Path) {
    for (name, content) in image {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// After all of a trace, nothing lost: what the shim saw is all that happened.
#[track_caller]
pub(crate) fn is_whole(trace: &Trace, directory: &Path) {
    let mut disk = Disk::default();
    for op in &trace.ops {
        disk.apply(op, &trace.bytes);
    }
    let mut replayed = disk.image(Unsynced::Kept, &trace.bytes, &mut Random::new(0));
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !name.ends_with("-shm") {
                let found = replayed.remove(&name).unwrap_or_else(|| panic!("the shim did not see {name}"));
                assert!(found == fs::read(&path).unwrap(), "the shim did not see all that was written to {name}");
            }
        }
    }
    assert!(replayed.is_empty(), "not there: {:?}", replayed.keys());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(ops: &[Op]) -> Disk {
        let mut disk = Disk::default();
        for op in ops {
            disk.apply(op, BYTES);
        }
        disk
    }

    const BYTES: &[u8] = b"aaaabbbbcccc";

    fn write(offset: u64, data: std::ops::Range<usize>) -> Op {
        Op::Written { file: 1, offset, data }
    }

    fn made() -> Op {
        Op::Made { file: 1, name: "f".into() }
    }

    fn content(disk: &Disk, unsynced: Unsynced) -> Option<Vec<u8>> {
        disk.image(unsynced, BYTES, &mut Random::new(1)).remove("f")
    }

    #[test]
    fn only_what_was_synced_is_sure_to_be_there() {
        let disk = disk(&[
            made(),
            write(0, 0..4),
            Op::Synced { file: 1 },
            Op::DirectorySynced { name: String::new() },
            write(2, 4..8),
        ]);
        assert_eq!(content(&disk, Unsynced::Dropped).unwrap(), b"aaaa");
        assert_eq!(content(&disk, Unsynced::Kept).unwrap(), b"aabbbb");
    }

    #[test]
    fn a_name_is_as_safe_as_its_directory() {
        let disk = disk(&[made(), write(0, 0..4), Op::Synced { file: 1 }]);
        assert_eq!(content(&disk, Unsynced::Dropped), None);
        assert_eq!(content(&disk, Unsynced::Kept).unwrap(), b"aaaa");
    }

    #[test]
    fn what_a_failed_sync_left_is_in_doubt_for_ever() {
        let failed = Op::SyncFailed { file: 1 };
        let ops = [
            made(),
            Op::DirectorySynced { name: String::new() },
            write(0, 0..4),
            failed,
            write(2, 4..8),
            Op::Synced { file: 1 },
        ];
        let disk = disk(&ops);
        assert_eq!(content(&disk, Unsynced::Dropped).unwrap(), b"\0\0bbbb");
        assert_eq!(content(&disk, Unsynced::Kept).unwrap(), b"aabbbb");
    }

    #[test]
    fn tears_writes_at_their_grain() {
        let disk = disk(&[made(), Op::DirectorySynced { name: String::new() }, write(0, 0..12)]);
        let mut random = Random::new(3);
        let mut found = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut image = disk.image(Unsynced::Mixed { grain: 4 }, BYTES, &mut random);
            let content = image.remove("f").unwrap();
            let blocks: Vec<bool> = content.chunks(4).map(|block| block != b"\0\0\0\0").collect();
            assert!(content.chunks(4).all(|block| block.iter().all(|byte| *byte == block[0])), "{content:?}");
            found.insert(blocks);
        }
        // Trailing blocks that are not kept are not there at all, so as many as subsets of three.
        assert_eq!(found.len(), 8, "{found:?}");
    }
}
