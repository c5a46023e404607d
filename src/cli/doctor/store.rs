//! The store, and the disk that it is on.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Finding, nearest};
use crate::{
    broker::{
        embedded::DiskSettings,
        guarded::{Orphan, is_spool},
    },
    cli::{shown::bytes, store::sentence},
    config::Config,
    message::Address,
    store::{self, StoreError, StoreFigures},
};

const NAME: &str = "store";
const DISK: &str = "store disk";
const SPOOL: &str = "spool";
/// Above this a publisher waits noticeably. Source: an idle disk with spinning platters takes 8 to 20 ms.
const FLUSH_SLOW: Duration = Duration::from_millis(30);
/// The middle one of so many counts.
const FLUSHES: usize = 5;
/// File systems where locks and flushes mean little, as the system names them.
const NETWORK: &[&str] = &["nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p", "lustre", "coda", "ncpfs"];
/// File systems that are gone with the machine's memory.
const IN_MEMORY: &[&str] = &["tmpfs", "ramfs"];

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    kind: String,
    source: String,
}

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let disk = &config.embedded.disk;
    let figures = store::stats(&disk.directory);
    let mut findings = figures.as_ref().map(|figures| orphans(config, figures)).unwrap_or_default();
    // The ledger of attempts is there, where another system keeps the messages.
    if !config.embedded.any_on_disk() && !config.counts_attempts() {
        // What is in a spool is told already.
        let is_told = |queue: &&store::QueueFigures| findings.is_empty() || !is_spool(&Address::queue(&*queue.name));
        let kept = figures.as_ref().map_or(0, |figures| {
            let queues = figures.queues.iter().filter(is_told).map(|queue| queue.messages);
            queues.chain(figures.topics.iter().map(|topic| topic.messages)).sum()
        });
        findings.push(match kept {
            0 if !findings.is_empty() => return findings,
            0 => Finding::ok(NAME, "nothing is kept on disk"),
            _ => Finding::warn(
                NAME,
                format_args!(
                    "{} has {kept} messages, and nothing is configured to be on disk",
                    disk.directory.display()
                ),
                "set embedded.storage, or that of their queues and topics, to disk",
            ),
        });
        return findings;
    }
    let there = nearest(&disk.directory);
    findings.splice(0..0, [contents(disk, figures, there), medium(disk, there)]);
    findings
}

/// What waits for systems that the configuration does not use.
fn orphans(config: &Config, figures: &StoreFigures) -> Vec<Finding> {
    let connections = config.connections_in_use();
    let names: Vec<&str> = connections.keys().map(|name| &**name).collect();
    let queues = figures.queues.iter().map(|queue| (Address::queue(&*queue.name), queue.messages, queue.bytes));
    let finding = |(name, orphan): (String, Orphan)| {
        let (found, fix) = orphan.says();
        Finding::warn(SPOOL, format_args!("{name}: {found}"), fix)
    };
    Orphan::all(queues, &names).into_iter().map(finding).collect()
}

fn contents(disk: &DiskSettings, figures: Result<StoreFigures, StoreError>, there: &Path) -> Finding {
    let directory = disk.directory.display();
    let figures = match figures {
        Ok(figures) => figures,
        // There is none yet.
        Err(StoreError::Foreign { path, .. }) if path == disk.directory => {
            return match tempfile::tempfile_in(there) {
                Ok(_) => Finding::ok(NAME, format_args!("{directory} is empty, or can be made")),
                Err(error) => Finding::fail(
                    NAME,
                    format_args!("{} cannot be written: {error}", there.display()),
                    "set embedded.disk.directory to one that this user may write",
                ),
            };
        }
        Err(error) => {
            let (found, fix) = sentence(&error);
            return Finding::fail(NAME, found, fix);
        }
    };
    let kept = figures.database_bytes - figures.database_free_bytes;
    let found = format!(
        "{directory} has {} messages in {} queues and {} topics, {} and a log of {}",
        messages(&figures),
        figures.queues.len(),
        figures.topics.len(),
        bytes(figures.database_bytes),
        bytes(figures.wal_bytes),
    );
    if let Some(failed) = &figures.failed {
        let fix = "look at the disk (its SMART values, the kernel's log); the next start verifies the store before anything else, and says whether a backup is needed";
        return Finding::warn(NAME, format_args!("{found}; the disk failed in an earlier run ({failed})"), fix);
    }
    match disk.bytes_max.filter(|max| kept > *max) {
        None => Finding::ok(NAME, found),
        Some(max) => Finding::warn(
            NAME,
            format_args!("{found}; {} may be kept (embedded.disk.bytes_max), and publishers are refused", bytes(max)),
            "let messages be handled, or raise it",
        ),
    }
}

fn messages(figures: &StoreFigures) -> u64 {
    let queues = figures.queues.iter().map(|queue| queue.messages);
    queues.chain(figures.topics.iter().map(|topic| topic.messages)).sum()
}

/// The file system, the room on it, and how fast it flushes.
fn medium(disk: &DiskSettings, there: &Path) -> Finding {
    let mount = fs::read_to_string("/proc/self/mountinfo").ok().zip(there.canonicalize().ok());
    let mount = mount.and_then(|(table, there)| mount_of(&table, &there));
    let (kind, on) = match &mount {
        Some(mount) => (mount.kind.as_str(), format!("{} ({}, at {})", mount.kind, mount.source, mount.at.display())),
        None => ("", "a file system that is not known".to_owned()),
    };
    if NETWORK.contains(&kind) {
        return Finding::fail(DISK, format_args!("{on} is a network's, and can lose what is confirmed"), LOCAL);
    }
    let volume = match rustix::fs::statvfs(there) {
        Ok(volume) => volume,
        Err(error) => {
            return Finding::fail(DISK, format_args!("{} cannot be looked at: {error}", there.display()), LOCAL);
        }
    };
    if volume.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Finding::fail(DISK, format_args!("{on} is mounted read-only"), "mount it writable, or choose another");
    }
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    let (has, must) = (bytes(free), bytes(disk.free_min));
    if free < disk.free_min {
        let found =
            format!("{on} has {has} free and must keep {must} (embedded.disk.free_min): publishers are refused");
        return Finding::warn(DISK, found, "free some, or choose another disk");
    }
    let room = format!("{has} free, publishers are refused below {must}");
    if IN_MEMORY.contains(&kind) {
        return Finding::warn(DISK, format_args!("{on} is in memory, and gone when the machine restarts"), LOCAL);
    }
    match flush_time(there) {
        Err(error) => Finding::fail(DISK, format_args!("{on} cannot be flushed: {error}"), "look at the disk"),
        Ok(time) if time > FLUSH_SLOW => Finding::warn(
            DISK,
            format_args!("{on}: {room}; a flush takes {} ms, which each publisher waits for", time.as_millis()),
            "publish from several tasks at once, which share flushes, or use a faster disk",
        ),
        Ok(time) => Finding::ok(DISK, format_args!("{on}: {room}; a flush takes {:.1} ms", time.as_secs_f64() * 1e3)),
    }
}

const LOCAL: &str = "set embedded.disk.directory to one on a local disk";

/// How long it takes to make a page safe: of some tries the middle one.
fn flush_time(there: &Path) -> io::Result<Duration> {
    let mut file = tempfile::tempfile_in(there)?;
    let mut times = Vec::with_capacity(FLUSHES);
    for _ in 0..FLUSHES {
        file.write_all(&[0; 8192])?;
        let begin = Instant::now();
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(FLUSHES / 2).copied().unwrap_or_default())
}

/// The file system of a path, of those in the system's table: the one whose mount point is nearest. Source: proc(5),
/// `/proc/pid/mountinfo`.
fn mount_of(table: &str, path: &Path) -> Option<Mount> {
    let mounts = table.lines().filter_map(|line| {
        let (place, device) = line.split_once(" - ")?;
        let at = PathBuf::from(unescaped(place.split(' ').nth(4)?));
        let mut device = device.split(' ');
        Some(Mount { at, kind: device.next()?.to_owned(), source: unescaped(device.next()?) })
    });
    // Of two at one place the later one hides the earlier.
    mounts.filter(|mount| path.starts_with(&mount.at)).max_by_key(|mount| mount.at.components().count())
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::{Broker, Declaration, QueueSettings, Storage, embedded},
        cli::doctor::Level,
        message::Message,
    };

    #[test]
    fn the_nearest_mount_that_is_seen_counts() {
        let table = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     30 21 0:30 / /srv/my\\040data rw - nfs4 server:/x rw\n\
                     31 21 0:31 / /srv/other rw - ext4 /dev/vdb rw\n\
                     32 31 0:32 / /srv/other rw - tmpfs tmpfs rw\n";
        for (path, kind, source) in [
            ("/srv", "ext4", "/dev/vda"),
            ("/srv/my data/store", "nfs4", "server:/x"),
            ("/srv/my database", "ext4", "/dev/vda"),
            ("/srv/other", "tmpfs", "tmpfs"),
        ] {
            let mount = mount_of(table, Path::new(path)).unwrap();
            assert_eq!((mount.kind.as_str(), mount.source.as_str()), (kind, source), "{path}");
        }
        assert_eq!(mount_of("", Path::new("/")), None);
    }

    #[test]
    fn a_look_makes_no_store_and_says_what_is_wrong_with_one() {
        let parent = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.embedded.disk = DiskSettings::new(parent.path().join("a/store"));
        let levels = |config: &Config| examine(config).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(levels(&config), [Level::Ok], "nothing is on disk");
        config.embedded.queue_defaults.storage = Storage::Disk;
        assert_eq!(examine(&config).first().map(|finding| finding.level), Some(Level::Ok));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        config.embedded.disk.free_min = u64::MAX;
        let found = examine(&config).pop().unwrap();
        assert!(found.level != Level::Ok && found.found.contains("free_min"), "{}", found.found);
        fs::create_dir_all(&config.embedded.disk.directory).unwrap();
        fs::write(config.embedded.disk.directory.join("store.db"), "no database at all").unwrap();
        assert_eq!(examine(&config).first().map(|finding| finding.level), Some(Level::Fail));
    }

    #[tokio::test]
    async fn names_what_waits_for_a_system_that_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.embedded.disk = DiskSettings { free_min: 0, ..DiskSettings::new(directory.path()) };
        let settings = embedded::Settings { disk: Some(config.embedded.disk.clone()), ..Default::default() };
        let embedded = embedded::Embedded::new("embedded", settings).unwrap();
        let on_disk = QueueSettings { storage: Storage::Disk, ..QueueSettings::default() };
        let name: std::sync::Arc<str> = "helixmq.spool.billing~eu.queue.q".into();
        embedded.declare(&[Declaration::Queue(std::sync::Arc::clone(&name), on_disk)]).await.unwrap();
        embedded.publish(&Address::queue(name), vec![Message::new("", "", 1).into()]).await.unwrap();
        embedded.close().await;
        drop(embedded);
        let findings = examine(&config);
        let [found] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(found.level, Level::Warn);
        assert!(found.found.starts_with("billing.eu: 1 messages wait on disk"), "{}", found.found);
    }
}
