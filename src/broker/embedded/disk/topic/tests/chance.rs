//! Everything that can happen to deliveries, and kills and restarts at any time between, by chance.

use std::collections::BTreeMap;

use super::*;

/// A repeatable source of chance.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

/// What is known of one message.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The next attempt is at least this one.
    attempt: u32,
    /// Ends of the process since it was seen: each may have used up an attempt, where it was handed over ahead.
    kills: u32,
    ended: bool,
}

struct World {
    dice: Dice,
    /// Directories, the last of them in use.
    directories: Vec<TempDir>,
    opened: Opened,
    reader: DiskTopicSubscription,
    out: Vec<Deliveries>,
    known: BTreeMap<u64, Known>,
}

fn two_partitions() -> TopicSettings {
    TopicSettings { partitions: 2, ..settings() }
}

impl World {
    async fn new(seed: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let opened = open(directory.path(), two_partitions());
        let reader = opened.read("group", Start::Earliest).await;
        let (directories, known) = (vec![directory], BTreeMap::new());
        Self { dice: Dice(seed), directories, opened, reader, out: Vec::new(), known }
    }

    fn of(&mut self, message: &Message) -> &mut Known {
        self.known.get_mut(&message.timestamp).unwrap()
    }

    async fn publish(&mut self) {
        let first = self.known.len() as u64;
        let numbers = first..=first + self.dice.roll(40);
        let message = |n: u64| Message { timestamp: n, key: Some(n.to_string().into()), ..Message::default() };
        let messages = numbers.clone().map(|n| Arc::new(message(n))).collect();
        assert_eq!(self.opened.topic.publish(messages, usize::MAX).await, []);
        self.known.extend(numbers.map(|n| (n, Known { attempt: 1, kills: 0, ended: false })));
    }

    async fn take(&mut self) {
        let max = BatchMax { count: 1 + self.dice.roll(12) as usize, ..ALL };
        // What comes later is taken another time.
        let Ok(next) = tokio::time::timeout(Duration::from_millis(5), self.reader.next(max)).await else { return };
        let taken = next.unwrap().unwrap();
        for delivery in taken.as_slice() {
            let known = self.of(&delivery.message);
            assert!(!known.ended, "{delivery:?} had ended");
            let attempts = known.attempt..=known.attempt + known.kills;
            assert!(attempts.contains(&delivery.attempt), "{delivery:?} is not one of {attempts:?}");
            assert_eq!(delivery.failures.len() as u32, delivery.attempt - 1, "each attempt has its end");
            *known = Known { attempt: delivery.attempt, kills: 0, ended: false };
        }
        self.out.push(taken);
    }

    /// Some of what is out.
    fn pick(&mut self) -> Deliveries {
        if self.out.is_empty() {
            return Deliveries::none();
        }
        let place = self.dice.roll(self.out.len() as u64) as usize;
        let mut batch = self.out.swap_remove(place);
        let picked = batch.take_front(1 + self.dice.roll(12) as usize);
        self.out.push(batch);
        self.out.retain(|batch| !batch.is_empty());
        picked
    }

    async fn accept(&mut self) {
        let picked = self.pick();
        picked.as_slice().iter().for_each(|delivery| self.of(&delivery.message).ended = true);
        accept(picked).await;
    }

    async fn redeliver(&mut self) {
        let picked = self.pick();
        let mut how = Vec::new();
        for delivery in picked.as_slice() {
            self.of(&delivery.message).attempt += 1;
            how.push(redeliver(delivery.attempt, Duration::from_millis(self.dice.roll(3))));
        }
        picked.settle(how).await.unwrap();
    }

    async fn release(&mut self) {
        let picked = self.pick();
        let after = Duration::from_millis(self.dice.roll(3));
        let count = picked.len();
        picked.settle(vec![Settlement::Release { after }; count]).await.unwrap();
    }

    async fn count_attempt(&mut self) {
        let mut picked = self.pick();
        let Some(first) = picked.as_slice().first() else { return };
        let (message, attempt) = (Arc::clone(&first.message), first.attempt);
        let failure = FailedAttempt { attempt, at: 0, code: ReasonCode::HandlerTrapped, text: String::new() };
        picked.count_attempt(failure).await.unwrap();
        self.of(&message).attempt += 1;
        self.out.push(picked);
    }

    /// What is out has used up its attempt, and so may have what was handed over ahead.
    async fn kill(&mut self) {
        let (directory, opened) = self.opened.killed(two_partitions()).await;
        self.known.values_mut().for_each(|known| known.kills += 1);
        let out: Vec<Arc<Message>> =
            self.out.iter().flat_map(Deliveries::as_slice).map(|d| Arc::clone(&d.message)).collect();
        for message in out {
            let known = self.of(&message);
            (known.attempt, known.kills) = (known.attempt + 1, 0);
        }
        self.begin_again(opened).await;
        self.directories.push(directory);
    }

    /// What is out goes back untried.
    async fn restart(&mut self) {
        self.opened.topic.close();
        self.opened.store.close();
        let opened = open(self.directories.last().unwrap().path(), two_partitions());
        self.begin_again(opened).await;
    }

    async fn begin_again(&mut self, opened: Opened) {
        self.reader = opened.read("group", Start::Latest).await;
        self.out.clear();
        self.opened = opened;
    }
}

#[tokio::test]
async fn each_message_ends_once_and_its_attempts_are_counted_whatever_happens() {
    const ROUNDS: u32 = 150;
    for seed in 1..=4 {
        let mut world = World::new(seed).await;
        let mut round = 0;
        while round < ROUNDS || world.known.values().any(|known| !known.ended) {
            round += 1;
            assert!(round < 5000, "seed {seed}: {:?}", world.known);
            // In the end, what is there only comes to its end.
            let happens = if round < ROUNDS { world.dice.roll(22) } else { 2 + world.dice.roll(17) };
            match happens {
                0 => world.kill().await,
                1 => world.restart().await,
                2 => world.redeliver().await,
                3 => world.release().await,
                4 => drop(world.pick()),
                5 => world.count_attempt().await,
                6..12 => world.accept().await,
                12..19 => world.take().await,
                _ => world.publish().await,
            }
        }
        let stats = world.opened.topic.stats();
        assert_eq!((stats.lag[0].1, stats.unsettled, stats.delayed), (0, 0, 0), "seed {seed}");
        assert!(world.directories.len() > 2, "seed {seed}: it was killed {} times", world.directories.len() - 1);
    }
}
