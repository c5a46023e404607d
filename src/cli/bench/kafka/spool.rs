//! `bench spool-drain`: a spool that drains to Kafka.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{Kind, PARTITIONS, Target, Topics};
use crate::{
    broker::{Broker, kafka::Kafka},
    cli::{
        Context,
        bench::{
            Args, Scenario, plan,
            spool::{self, SpoolReport},
        },
    },
    message::Address,
};

/// Runs it on a topic of its own, which is removed whatever happens.
///
/// # Errors
/// What was missing, or did not go on.
pub(in crate::cli::bench) fn drain(args: &Args, context: &Context, runtime: &Handle) -> anyhow::Result<SpoolReport> {
    let target = Target::new(&args.kafka, Kind::Filled { by_hand: false }, context)?;
    let kafka = Arc::new(runtime.block_on(Kafka::connect("kafka", target.settings.clone()))?);
    let topics = Topics::new(&plan(args, Scenario::Kafka)?);
    runtime.block_on(topics.make(&kafka, PARTITIONS))?;
    let to = Address::topic(topics.work.as_str());
    let measured = spool::run_on(args, Arc::clone(&kafka) as Arc<dyn Broker>, &to, runtime);
    runtime.block_on(kafka.close());
    let removed = runtime.block_on(topics.remove(&target));
    let measured = measured?;
    removed?;
    Ok(measured)
}
