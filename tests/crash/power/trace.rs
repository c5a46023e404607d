//! What a process did to its files, in order, as the shim wrote it down.

use std::{fs, ops::Range, path::Path};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A file got its name.
    Made {
        file: u32,
        name: String,
    },
    /// A file that was there was opened.
    Opened {
        file: u32,
        name: String,
    },
    /// Bytes, as a place in [`Trace::bytes`].
    Written {
        file: u32,
        offset: u64,
        data: Range<usize>,
    },
    Length {
        file: u32,
        length: u64,
    },
    Synced {
        file: u32,
    },
    /// It was asked for and failed: nobody knows what of it is on the disk, and it is not asked for again.
    SyncFailed {
        file: u32,
    },
    DirectorySynced {
        name: String,
    },
    Removed {
        name: String,
    },
    Renamed {
        from: String,
        to: String,
    },
}

#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) ops: Vec<Op>,
    pub(crate) bytes: Vec<u8>,
}

impl Trace {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut ops = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let head = &bytes[at..at + 24];
            let (op, flag) = (head[0], head[1]);
            let path_length = usize::from(u16::from_ne_bytes(head[2..4].try_into().unwrap()));
            let file = u32::from_ne_bytes(head[4..8].try_into().unwrap());
            let number = u64::from_ne_bytes(head[8..16].try_into().unwrap());
            let data_length = u64::from_ne_bytes(head[16..24].try_into().unwrap()) as usize;
            let path = at + 24..at + 24 + path_length;
            let data = path.end..path.end + data_length;
            at = data.end;
            let text = |range: Range<usize>| String::from_utf8(bytes[range].to_vec()).unwrap();
            ops.push(match (op, flag) {
                (b'O', 0) => Op::Opened { file, name: text(path) },
                (b'O', _) => Op::Made { file, name: text(path) },
                (b'W', _) => Op::Written { file, offset: number, data },
                (b'T', _) => Op::Length { file, length: number },
                (b'S', 0) => Op::Synced { file },
                (b'S', _) => Op::SyncFailed { file },
                (b'D', _) => Op::DirectorySynced { name: text(path) },
                (b'U', _) => Op::Removed { name: text(path) },
                (b'R', _) => Op::Renamed { from: text(path), to: text(data) },
                _ => panic!("{:?} is no op", char::from(op)),
            });
        }
        Self { ops, bytes }
    }
}
