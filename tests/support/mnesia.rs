//! What a RabbitMQ has on disk of its queues.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::eventually;

/// Waits until a server whose data is in `folder` would find a queue again if it were killed. It says that a queue is there,
/// and confirms what is published to it, up to some seconds before that is on disk: killed in between, it comes back without
/// the queue, or with a quorum queue that nobody leads, and what it confirmed is gone. Measured on 3.10.8, with no engine
/// near; its queues are in Mnesia, whose log is written with a delay, the members of quorum queues in `names.dets`.
pub(crate) async fn remembers(folder: &Path, vhost: &str, queue: &str, is_quorum: bool) {
    // As it names the process that is a member.
    let member = format!("{}_{queue}", if vhost == "/" { "%2F" } else { vhost });
    let is_written = async || {
        let files = files(folder, 4);
        let of = |ends: &[&str]| {
            let ends: Vec<_> = ends.iter().map(ToString::to_string).collect();
            files.iter().filter(move |file| ends.iter().any(|end| file.to_string_lossy().ends_with(end)))
        };
        let has = |file: &PathBuf, is: &dyn Fn(&[u8]) -> bool| fs::read(file).is_ok_and(|bytes| is(&bytes));
        let is_known = |bytes: &[u8]| follows(bytes, vhost.as_bytes(), queue.as_bytes());
        let is_member = |bytes: &[u8]| bytes.windows(member.len()).any(|part| part == member.as_bytes());
        let known = of(&[".LOG", ".DCD", ".DCL", ".wal"]).any(|file| has(file, &is_known));
        let is_led = !is_quorum || of(&["names.dets"]).any(|file| has(file, &is_member));
        (known && is_led).then_some(())
    };
    eventually("the queue is written down", is_written).await;
}

/// Files in a folder, and in those in it.
fn files(folder: &Path, deep: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let (folders, mut found): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    // What queues keep is not what is known of them.
    let others = folders.iter().filter(|folder| deep > 0 && !folder.ends_with("msg_stores"));
    found.extend(others.flat_map(|folder| files(folder, deep - 1)));
    found
}

/// Whether `second` comes shortly after `first`.
fn follows(bytes: &[u8], first: &[u8], second: &[u8]) -> bool {
    let starts = bytes.windows(first.len()).enumerate().filter(|(_, part)| *part == first).map(|(place, _)| place);
    let mut behind = starts.map(|place| &bytes[place + first.len()..(place + first.len() + 64).min(bytes.len())]);
    behind.any(|part| part.windows(second.len()).any(|part| part == second))
}
