//! What the server is told of deliveries, as commands, and what it made of them.

use redis::{Cmd, Value, cmd};

use super::{
    super::{scripts, shared::is_true},
    session::Session,
    work::{Back, Entry, To, Work},
};
use crate::{broker::redis::link::Up, message::Kind};

/// Entries that one call of a script is about, at most: the server does nothing else meanwhile.
const TOGETHER: usize = 500;

/// What one command is for, as its answer says.
pub(super) enum Step {
    /// Nothing is to be learned from it.
    Done,
    /// So many that are to come again.
    Back(usize),
    /// Whose leases began anew.
    Renewed(Vec<Entry>),
    /// What is not new.
    Tend,
    /// What is new: of each level at most `count`, down to the one that `last` says.
    Read {
        /// How many.
        count: usize,
        /// Of which levels.
        last: Option<usize>,
    },
}

impl Session {
    pub(super) fn stream(&self, place: u8) -> &str {
        self.streams.get(usize::from(place)).map_or("", String::as_str)
    }

    /// What says all of that to the server.
    pub(super) fn tell(&self, work: &Work, steps: &mut Vec<(Step, Cmd)>) {
        self.tell_done(work, steps);
        for together in work.back.chunks(TOGETHER) {
            let mut command = scripts::BACK.by_hash();
            command.arg(&self.place.base).arg(&*self.group).arg(&self.side).arg(&self.name);
            for back in together {
                self.tell_back(back, &mut command);
            }
            steps.push((Step::Back(together.len()), command));
        }
    }

    fn tell_done(&self, work: &Work, steps: &mut Vec<(Step, Cmd)>) {
        if self.place.known().counts_bytes {
            for together in work.done.chunks(TOGETHER) {
                let mut command = scripts::ACCEPT.by_hash();
                command.arg(&self.place.base).arg(&*self.group);
                for done in together {
                    let (stream, id) = done.entry;
                    command.arg(self.stream(stream)).arg(id.to_string()).arg(done.size);
                }
                steps.push((Step::Done, command));
            }
        } else {
            for (place, stream) in self.streams.iter().enumerate() {
                let of_this = |entry: &Entry| usize::from(entry.0) == place;
                let ids: Vec<String> =
                    work.done.iter().filter(|done| of_this(&done.entry)).map(|done| done.entry.1.to_string()).collect();
                if ids.is_empty() {
                    continue;
                }
                let key = self.place.key(stream);
                // Deleted first: what is acknowledged and not deleted would stay for ever.
                if self.place.address.kind == Kind::Queue {
                    let mut command = cmd("XDEL");
                    command.arg(&key).arg(&ids);
                    steps.push((Step::Done, command));
                }
                let mut command = cmd("XACK");
                command.arg(&key).arg(&*self.group).arg(&ids);
                steps.push((Step::Done, command));
            }
        }
        let noted: Vec<String> = work
            .done
            .iter()
            .filter(|done| done.has_notes)
            .map(|done| format!("{}/{}", self.stream(done.entry.0), done.entry.1))
            .collect();
        if !noted.is_empty() {
            let mut command = cmd("HDEL");
            command.arg(self.place.key(&format!("tries{}", self.side))).arg(noted);
            steps.push((Step::Done, command));
        }
    }

    fn tell_back(&self, back: &Back, command: &mut Cmd) {
        let (stream, id) = back.entry;
        let (to, after) = match &back.to {
            To::Me(_) => (self.name.as_str(), 0),
            To::Anyone => ("returned", 0),
            To::Later(after) => ("later", u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        };
        let notes = back.failures.as_ref().and_then(|failures| serde_json::to_string(failures).ok());
        command.arg(self.stream(stream)).arg(id.to_string()).arg(back.count).arg(back.count_then).arg(to).arg(after);
        command.arg(notes.unwrap_or_default());
    }

    /// What makes leases begin anew.
    pub(super) fn tell_renewed(&self, entries: Vec<Entry>, steps: &mut Vec<(Step, Cmd)>) {
        for together in entries.chunks(TOGETHER) {
            let mut command = scripts::RENEW.by_hash();
            command.arg(&self.place.base).arg(&*self.group).arg(&self.name);
            for (stream, id) in together {
                command.arg(self.stream(*stream)).arg(id.to_string());
            }
            steps.push((Step::Renewed(together.to_vec()), command));
        }
    }

    /// What takes all that is not new, at most `room`; of what may have ended another process one, where `takes_suspect`.
    pub(super) fn tend(&self, room: usize, takes_suspect: bool) -> Cmd {
        let mut command = scripts::TEND.by_hash();
        let lease = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        command.arg(&self.place.base).arg(&*self.group).arg(&self.side).arg(&self.name).arg(room);
        command.arg(u8::from(takes_suspect)).arg(lease);
        command.arg(self.shared.engine()).arg(self.shared.run()).arg(self.streams.len()).arg(&self.streams);
        command
    }

    /// What takes what is new: of each level at most `count`, down to the one that `last` says.
    pub(super) fn read_new(&self, count: usize, last: Option<usize>) -> Cmd {
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(&*self.group).arg(&self.name).arg("COUNT").arg(count).arg("STREAMS");
        let read: Vec<String> = self
            .streams
            .iter()
            .enumerate()
            .filter(|(place, name)| !name.starts_with('d') && last.is_none_or(|last| *place <= last))
            .map(|(_, name)| self.place.key(name))
            .collect();
        command.arg(&read).arg(vec![">"; read.len()]);
        command
    }

    /// Gives back what the server believes to be here and is not, and leaves where that is the end.
    ///
    /// # Errors
    /// As [`Up::ask`].
    pub(super) async fn leave(&self, up: &Up, is_end: bool) -> Result<(), redis::RedisError> {
        let held: Vec<String> = if is_end {
            Vec::new()
        } else {
            self.state().held().map(|(stream, id)| format!("{}/{id}", self.stream(stream))).collect()
        };
        up.run(&scripts::LEAVE, |command| {
            command.arg(&self.place.base).arg(&*self.group).arg(&self.name).arg(u8::from(is_end));
            command.arg(self.streams.len()).arg(&self.streams).arg(&held);
        })
        .await?;
        Ok(())
    }
}

impl Session {
    /// Which of them were still ours; and notes what else is said.
    pub(super) fn ours(&self, answer: Value, count: usize) -> Vec<bool> {
        let Value::Array(parts) = answer else { return vec![false; count] };
        let Ok([Value::Array(done), Value::Int(delayed), Value::Int(at)]) = <[Value; 3]>::try_from(parts) else {
            return vec![false; count];
        };
        if self.place.address.kind == Kind::Queue {
            self.place.delayed(delayed, at);
        }
        done.iter().map(is_true).collect()
    }
}
