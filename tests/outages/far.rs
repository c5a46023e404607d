//! The far end: what others find in queues and topics, by clients that know nothing of the engine.

use std::{collections::VecDeque, time::Duration};

use futures_util::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties, Consumer,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    support::{PATIENCE, soon},
    yard::{Server, System},
};

/// What Redis answers: entries by id, of each its fields.
type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

/// How long nothing comes where there is no more.
const SILENCE: Duration = Duration::from_secs(1);

/// Somebody who reads a queue or topic from its beginning.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum Reader {
    /// It takes what it reads.
    RabbitMq {
        consumer: Consumer,
        _connection: Connection,
    },
    Kafka {
        client: Option<BaseConsumer>,
        read: VecDeque<Vec<u8>>,
    },
    /// Of a queue without priorities.
    Redis {
        connection: MultiplexedConnection,
        stream: String,
        /// The entry that was read last.
        last: String,
        read: VecDeque<Vec<u8>>,
    },
}

impl Reader {
    pub(crate) async fn new(server: &Server, name: &str) -> Self {
        match server.system {
            System::RabbitMq => {
                let uri = format!("amqp://guest:guest@{}/%2f", server.direct());
                let connection = soon("a connection", Connection::connect(&uri, ConnectionProperties::default())).await;
                let connection = connection.expect("a connection");
                let channel = connection.create_channel().await.expect("a channel");
                channel.basic_qos(1000, BasicQosOptions::default()).await.expect("a prefetch");
                let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
                let consumer = channel.basic_consume(name.into(), "".into(), options, FieldTable::default());
                let consumer = soon("a consumer", consumer).await.unwrap_or_else(|error| panic!("{name}: {error}"));
                Self::RabbitMq { consumer, _connection: connection }
            }
            System::Kafka => {
                let (bootstrap, topic) = (server.direct().to_string(), name.to_owned());
                let client = spawn_blocking(move || kafka(&bootstrap, &topic)).await.expect("a client");
                Self::Kafka { client: Some(client), read: VecDeque::new() }
            }
            System::Redis => {
                let client = redis::Client::open(format!("redis://{}", server.direct())).expect("a client");
                // It waits as long as it takes, where a machine is busy.
                let patient = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
                let connecting = client.get_multiplexed_async_connection_with_config(&patient);
                let connection = soon("a connection", connecting).await;
                let stream = format!("helixmq:queue:{{{name}}}:p0");
                let connection = connection.expect("a connection");
                Self::Redis { connection, stream, last: "0-0".to_owned(), read: VecDeque::new() }
            }
        }
    }

    /// The payload that comes next; `None`: for a while, nothing did.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::RabbitMq { consumer, .. } => {
                let next = timeout(SILENCE, consumer.next()).await.ok()?;
                Some(next.expect("a consumer that goes on").expect("a delivery").data)
            }
            Self::Kafka { client, read } => {
                if read.is_empty() {
                    let polled = client.take().expect("given back");
                    let (polled, more) = spawn_blocking(move || poll(polled)).await.expect("a client");
                    (*client, *read) = (Some(polled), more);
                }
                read.pop_front()
            }
            Self::Redis { connection, stream, last, read } => {
                if read.is_empty() {
                    let mut ask = redis::cmd("XRANGE");
                    ask.arg(&*stream).arg(format!("({last}")).arg("+").arg("COUNT").arg(1000);
                    let answer = soon("an answer", ask.query_async::<Entries>(connection)).await;
                    for (place, fields) in answer.expect("entries") {
                        *last = place;
                        read.extend(fields.into_iter().find(|(name, _)| name == "payload").map(|(_, value)| value));
                    }
                }
                if read.is_empty() {
                    sleep(SILENCE).await;
                }
                read.pop_front()
            }
        }
    }
}

fn kafka(bootstrap: &str, topic: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    // It commits nothing; a group has to have a name.
    config.set("bootstrap.servers", bootstrap).set("group.id", "nobody").set("enable.auto.commit", "false");
    let client: BaseConsumer = config.create().expect("a client");
    let metadata = client.fetch_metadata(Some(topic), PATIENCE).expect("which partitions there are");
    let mut places = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        places.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
    }
    client.assign(&places).expect("assigned");
    client
}

/// What is there, until for a while nothing comes.
fn poll(client: BaseConsumer) -> (BaseConsumer, VecDeque<Vec<u8>>) {
    let mut read = VecDeque::new();
    while let Some(record) = client.poll(SILENCE) {
        let record = record.expect("a record");
        read.push_back(record.payload().unwrap_or_default().to_vec());
        if read.len() >= 1000 {
            break;
        }
    }
    (client, read)
}
