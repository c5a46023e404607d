//! The hub as a Rust program uses it: tasks and events in and out, with functions of the program as handlers. Everything
//! goes the same way as with components: routes, attempts, dead letters.

use std::{sync::Arc, time::Duration};

use super::{
    effects::{count_failure, count_published},
    error::StartError,
    supervisor::Hub,
};
use crate::{
    broker::PublishError,
    handler::{Call, native::Native},
    message::{Address, AddressError, Kind, Message, MessageId, Outcome},
    route::{Route, RouteTable, TableError},
};

/// A task or event was not published.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Write the name otherwise.
    #[error(transparent)]
    Name(#[from] AddressError),
    /// See its own words; it may be tried again where [`PublishError::is_retryable`] says so.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// A handler was not subscribed: nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum SubscribeError {
    /// Write the name otherwise.
    #[error(transparent)]
    Name(#[from] AddressError),
    /// Another handler has these messages: end that route, or read another queue or topic.
    #[error("{}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Route(Vec<TableError>),
    /// See the hub's own words.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Hub {
    /// Publishes a task to a queue, which may be `SYSTEM:NAME`, and returns once it is confirmed.
    ///
    /// # Errors
    /// [`SendError`]: it is not there, or not known to be.
    pub async fn publish_task(&self, queue: &str, task: Message) -> Result<MessageId, SendError> {
        self.send(Address::checked(Kind::Queue, queue)?, task).await
    }

    /// The same of an event, to a topic.
    ///
    /// # Errors
    /// [`SendError`]: it is not there, or not known to be.
    pub async fn publish_event(&self, topic: &str, event: Message) -> Result<MessageId, SendError> {
        self.send(Address::checked(Kind::Topic, topic)?, event).await
    }

    /// Handles what comes to a queue, which may be `SYSTEM:NAME`, by a function of this program: one route more, with the
    /// defaults of [`Route::new`]. A route of one's own making goes to [`Hub::apply`].
    ///
    /// # Errors
    /// [`SubscribeError`]: nothing has changed.
    pub async fn subscribe_tasks<F>(&self, queue: &str, handler: F) -> Result<(), SubscribeError>
    where
        F: Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
    {
        self.subscribe(Route::new(name_of("tasks", queue), Address::checked(Kind::Queue, queue)?), handler).await
    }

    /// The same of a topic. Programs that name the same group share its messages; each group has all of them.
    ///
    /// # Errors
    /// [`SubscribeError`]: nothing has changed.
    pub async fn subscribe_events<F>(&self, topic: &str, group: &str, handler: F) -> Result<(), SubscribeError>
    where
        F: Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
    {
        let mut route = Route::new(name_of("events", topic), Address::checked(Kind::Topic, topic)?);
        route.source.group = group.into();
        self.subscribe(route, handler).await
    }

    async fn send(&self, to: Address, message: Message) -> Result<MessageId, SendError> {
        let id = message.id.clone();
        let broker = &**self.broker();
        match broker.publish(&to, vec![Arc::new(message)]).await {
            Ok(()) => {
                count_published(broker, &to, 1);
                Ok(id)
            }
            Err(failures) => {
                let error = failures.0.into_iter().next().map_or(PublishError::Closed, |(_, error)| error);
                count_failure(broker, &to, &error);
                Err(error.into())
            }
        }
    }

    async fn subscribe<F>(&self, mut route: Route, handler: F) -> Result<(), SubscribeError>
    where
        F: Fn(&Call<'_>) -> Outcome + Send + Sync + 'static,
    {
        // One at a time: each builds on the routes before it.
        let _turn = self.subscribing().lock().await;
        let mut settings = self.settings();
        route.dead_letter = settings.dead_letter.clone();
        let name = route.handler.to_string();
        let routes = settings.routes.iter().map(|route| Route::clone(route)).chain([route]).collect();
        settings.routes = RouteTable::new(routes).map_err(SubscribeError::Route)?;
        self.registry().slot(&name).serve(Native::new(name.clone(), handler), Duration::ZERO, false);
        self.apply(settings, None).await?;
        Ok(())
    }
}

/// A route, and the handler it names.
fn name_of(what: &str, source: &str) -> String {
    format!("{what} of {source}")
}
