//! The part of the process whose power fails: it works on a store, and says what was confirmed where the shim sees it in
//! its place among everything else, by writing it to a file beside the store's.

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use helixmq::store::{Batch, Need, Settings, Store, StoreError, Synchronous};

use super::{
    model::{Content, Model, Places},
    shim::{Fault, Shim, directory_here},
    trace::{Op, Trace},
};

pub(crate) const SEED: &str = "HELIXMQ_CRASH_WORK_SEED";
pub(crate) const STEPS: &str = "HELIXMQ_CRASH_WORK_STEPS";
/// `normal`: the store does not wait for the disk.
pub(crate) const SYNCHRONOUS: &str = "HELIXMQ_CRASH_WORK_SYNCHRONOUS";
/// After how many steps a sync fails.
pub(crate) const SYNC_FAILS: &str = "HELIXMQ_CRASH_WORK_SYNC_FAILS";
/// Where the store is, and beside it the file that says what was confirmed.
pub(crate) const STORE: &str = "store";
const MARKS: &str = "marks";
/// Steps that are submitted before the first of them is confirmed, at most.
const AHEAD_MAX: u64 = 12;

/// What the process said, at a place in the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// The places are made.
    pub(crate) made: bool,
    /// Steps that were confirmed, and that may have been begun.
    pub(crate) confirmed: u64,
    pub(crate) submitted: u64,
}

struct Marks(Mutex<File>);

impl Marks {
    fn say(&self, line: &str) {
        self.0.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// What was said by each place of a trace.
pub(crate) fn said(trace: &Trace) -> Vec<Said> {
    let (mut marks, mut said) = (None, Said::default());
    let one = |op: &Op| {
        match op {
            Op::Made { file, name } if name == MARKS => marks = Some(*file),
            Op::Written { file, data, .. } if Some(*file) == marks => {
                let text = std::str::from_utf8(&trace.bytes[data.clone()]).unwrap().trim_end();
                match text.split_once(' ') {
                    Some(("confirmed", number)) => said.confirmed = said.confirmed.max(number.parse().unwrap()),
                    Some(("submitted", number)) => said.submitted = said.submitted.max(number.parse().unwrap()),
                    _ => said.made = true,
                }
            }
            _ => {}
        }
        said
    };
    trace.ops.iter().map(one).collect()
}

/// Steps that are under way.
#[derive(Default)]
struct Under {
    way: Mutex<u64>,
    ended: Condvar,
    failed: AtomicBool,
    /// What should not have happened; a thread of the store is not the place to panic.
    wrong: Mutex<Vec<String>>,
}

/// Submits the next step; what comes of it is said when it is known.
fn submit(store: &Store, model: &mut Model, marks: &Arc<Marks>, under: &Arc<Under>) {
    let way = under.way.lock().unwrap();
    *under.ended.wait_while(way, |way| *way >= AHEAD_MAX).unwrap() += 1;
    let changes = model.step();
    let step = model.content.steps;
    marks.say(&format!("submitted {step}"));
    let (marks, under) = (Arc::clone(marks), Arc::clone(under));
    let then = Box::new(move |result: Result<(), Arc<StoreError>>| {
        match result {
            Ok(()) if under.failed.load(Ordering::SeqCst) => {
                under.wrong.lock().unwrap().push(format!("step {step} is confirmed after one that failed"));
            }
            Ok(()) => marks.say(&format!("confirmed {step}")),
            Err(error) => {
                under.failed.store(true, Ordering::SeqCst);
                if !matches!(*error, StoreError::Failed { .. }) {
                    under.wrong.lock().unwrap().push(format!("step {step}: {error}"));
                }
            }
        }
        *under.way.lock().unwrap() -= 1;
        under.ended.notify_all();
    });
    store.submit(Batch { changes, need: Need::MustHappen, permit: None, then: Some(then) });
}

fn wait(under: &Under) {
    let way = under.way.lock().unwrap();
    drop(under.ended.wait_while(way, |way| *way > 0).unwrap());
    let wrong = under.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Opens a store, works, closes it, opens it again, works on. Where a sync is to fail, it is opened again after that.
#[test]
#[ignore = "the part of another process; the tests in images.rs start it"]
fn works_on_a_store() {
    let directory = directory_here();
    std::fs::create_dir(directory.join(STORE)).unwrap();
    let steps = number(STEPS).unwrap();
    let mut settings = Settings::new(directory.join(STORE));
    settings.free_min = 0;
    if std::env::var(SYNCHRONOUS).is_ok_and(|text| text == "normal") {
        settings.synchronous = Synchronous::Normal;
    }
    let store = Store::open(settings.clone()).unwrap();
    let places = Places::make(&store).unwrap();
    let marks = Arc::new(Marks(Mutex::new(File::create(directory.join(MARKS)).unwrap())));
    marks.say("made");
    let mut model = Model::new(number(SEED).unwrap(), places);
    let sync_fails = number(SYNC_FAILS);
    let mut store = Some(store);
    for step in 1..=steps {
        let under = Arc::new(Under::default());
        let open = store.as_ref().unwrap();
        // A pause now and then, so that commits have one step or many.
        submit(open, &mut model, &marks, &under);
        if step % 3 == 0 {
            while !model.content.steps.is_multiple_of(7) {
                submit(open, &mut model, &marks, &under);
            }
        }
        if sync_fails == Some(step) {
            wait(&under);
            Shim::faults_here().on(Fault::SyncFails);
            while !under.failed.load(Ordering::SeqCst) {
                submit(open, &mut model, &marks, &under);
            }
            // The disk is fine again, and still nothing more is confirmed.
            assert!(!Shim::faults_here().is_on(Fault::SyncFails));
            for _ in 0..5 {
                submit(open, &mut model, &marks, &under);
            }
            wait(&under);
            drop(store.take());
            store = Some(Store::open(settings.clone()).unwrap());
            // What was refused may be there or not; the work goes on from what is.
            let found = Content::read(store.as_ref().unwrap()).unwrap().unwrap();
            let places = Places::make(store.as_ref().unwrap()).unwrap();
            model = Model::new(number(SEED).unwrap(), places);
            while model.content.steps < found.steps {
                model.step();
            }
            assert_eq!(found.difference(&model.content), None);
            continue;
        }
        wait(&under);
        if step == steps * 3 / 4 {
            store.take().unwrap().close();
            store = Some(Store::open(settings.clone()).unwrap());
        }
    }
    store.take().unwrap().close();
}
