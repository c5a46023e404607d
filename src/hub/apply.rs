//! New settings for an engine that runs: what they do not change goes on undisturbed, the rest ends between two batches and
//! begins anew. Where that fails, all is as it was before.

use std::sync::PoisonError;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    error::StartError,
    exchange::Exchange,
    running::LaneEnd,
    supervisor::{Settings, Supervisor, declare, loader_settings},
};
use crate::{
    message::Address,
    route::{Route, RouteTable},
};

impl Supervisor {
    pub(super) async fn apply(
        &mut self,
        settings: Settings,
        mut exchange: Option<Exchange>,
        lane_ends: &mut mpsc::Receiver<LaneEnd>,
        stop: &CancellationToken,
    ) -> Result<(), StartError> {
        if exchange.is_none() {
            // Before anything ends.
            declare(&*self.broker, &settings.declarations).await?;
        }
        let before = self.current();
        let grace = settings.grace;
        let is_other = |address: &Address| before.routes.of(address) != settings.routes.of(address);
        let stopping: Vec<Address> = self
            .running
            .keys()
            .filter(|address| is_other(address) || self.is_concerned(&before.routes, address, exchange.as_ref()))
            .cloned()
            .collect();
        if !self.drain(&stopping, grace, lane_ends, Some(stop)).await {
            return Err(StartError::Stopping);
        }
        if let Err(error) = self.begin(&settings, exchange.as_mut()).await {
            // What has just been started ends, what has just been ended starts again.
            let started: Vec<Address> = self
                .running
                .keys()
                .filter(|address| is_other(address) || self.is_concerned(&settings.routes, address, exchange.as_ref()))
                .cloned()
                .collect();
            self.drain(&started, grace, lane_ends, None).await;
            if let Some(exchange) = exchange {
                exchange.back().await;
            }
            if let Err(error) = self.start_missing(&before.routes).await {
                tracing::error!(
                    "routes that ran before cannot be started again; apply the settings once more: {error}"
                );
            }
            self.show();
            return Err(error);
        }
        let names = before.plugins.keys().chain(settings.plugins.keys());
        let changed = names.filter(|name| before.plugins.get(*name) != settings.plugins.get(*name));
        let changed: Vec<String> = changed.cloned().collect();
        *self.loader_settings.lock().unwrap_or_else(PoisonError::into_inner) =
            loader_settings(&settings, &self.program);
        self.budget.set(settings.memory_budget);
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        if !changed.is_empty() {
            // The loader has ended only when the hub stops.
            self.plugins_changed.send(changed).await.ok();
        }
        self.show();
        Ok(())
    }

    /// Exchanges systems, makes what has to be there, and starts what does not run.
    async fn begin(&mut self, settings: &Settings, exchange: Option<&mut Exchange>) -> Result<(), StartError> {
        if let Some(exchange) = exchange {
            let exchanged = exchange.forth().await;
            exchanged.map_err(|(broker, error)| StartError::Broker { broker: broker.to_string(), error })?;
            declare(&*self.broker, &settings.declarations).await?;
        }
        self.start_missing(&settings.routes).await
    }

    /// Whether routes of a source read from, or publish to, a system that is exchanged.
    fn is_concerned(&self, routes: &RouteTable, source: &Address, exchange: Option<&Exchange>) -> bool {
        let Some(exchange) = exchange else { return false };
        let is_at = |address: &Address| exchange.concerns(&self.broker.name_of(address));
        let names = |route: &Route| is_at(&route.dead_letter) || route.terms.destinations.values().any(is_at);
        is_at(source) || routes.of(source).iter().any(|route| names(route))
    }
}
