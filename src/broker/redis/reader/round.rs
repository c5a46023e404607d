//! One round trip: all that the server is told and asked at a time, and what it answers.

use std::{future::Future, pin::Pin, sync::Arc};

use redis::{Cmd, Pipeline, RedisError};

use super::{
    super::{
        link::Up,
        place::{Changing, Place},
        reply::Reply,
    },
    told::Step,
    work::Work,
};

/// What the server is told and asked.
pub(super) struct Round {
    pub(super) up: Up,
    pub(super) work: Work,
    /// What each command is for.
    pub(super) steps: Vec<Step>,
    pub(super) commands: Pipeline,
    /// Held until it is counted.
    pub(super) changing: Option<Changing>,
}

/// With what came of it.
pub(super) type Answered = (Round, Result<Vec<Reply>, RedisError>);

/// Until it is answered, or the connection is lost. It is sent when it is first polled.
pub(super) type Asking = Pin<Box<dyn Future<Output = Answered> + Send>>;

impl Round {
    pub(super) fn new(up: &Up, place: &Arc<Place>, work: Work, steps: Vec<(Step, Cmd)>) -> Self {
        let (steps, commands) = together(steps);
        let changing = (!work.done.is_empty()).then(|| place.changing());
        Self { up: up.clone(), work, steps, commands, changing }
    }

    /// How many entries it asks for.
    pub(super) fn asks_for(&self) -> usize {
        let count = |step: &Step| if let Step::Read { count, .. } = step { *count } else { 0 };
        self.steps.iter().map(count).sum()
    }

    pub(super) async fn ask(self) -> Answered {
        let answers = self.up.ask_each(&self.commands).await;
        (self, answers)
    }
}

/// The commands as one pipeline.
pub(super) fn together(steps: Vec<(Step, Cmd)>) -> (Vec<Step>, Pipeline) {
    let mut pipeline = Pipeline::with_capacity(steps.len());
    let add = |(step, command)| {
        pipeline.add_command(command);
        step
    };
    (steps.into_iter().map(add).collect(), pipeline)
}
