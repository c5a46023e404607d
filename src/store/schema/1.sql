-- Layout 1. docs/storage.md explains it to operators.
-- Times are milliseconds since 1970. Keys are composed so that rows lie in the order they are read; the views of
-- views.sql take them apart.

-- Queues and topics. Numbers are not used twice.
CREATE TABLE place (
    place INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('queue', 'topic')),
    name TEXT NOT NULL,
    created INTEGER NOT NULL,
    -- Of a queue: every sequence below may have been used.
    sequence_next INTEGER NOT NULL DEFAULT 1,
    UNIQUE (kind, name)
) STRICT;

-- Messages in queues: place << 51 | lane << 47 | sequence.
CREATE TABLE message (
    key INTEGER PRIMARY KEY,
    -- 16 bytes of a UUID, or text.
    id ANY NOT NULL,
    type TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    -- What it counts towards limits: payload, headers and key.
    bytes INTEGER NOT NULL,
    -- Headers and everything that has no column.
    rest BLOB NOT NULL,
    payload BLOB NOT NULL
) STRICT;

-- Sums over the messages of a lane: place << 4 | lane.
CREATE TABLE lane (
    lane INTEGER PRIMARY KEY,
    count INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    -- How many are noted with a due time.
    waiting INTEGER NOT NULL DEFAULT 0,
    -- Sequence up to which all were handed over at least once.
    handed INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What is noted of messages in queues: those that failed, that wait, or that are out again.
CREATE TABLE attempt (
    key INTEGER PRIMARY KEY,
    attempt INTEGER NOT NULL,
    -- 1: handed over for that attempt.
    out INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    due INTEGER,
    -- A JSON array, as in dead letters. NULL: none.
    failures TEXT
) STRICT;
CREATE INDEX attempt_due ON attempt (key >> 51, due) WHERE due IS NOT NULL;

CREATE TABLE partition (
    partition INTEGER PRIMARY KEY,
    place INTEGER NOT NULL REFERENCES place (place),
    -- Counted from 0 in its topic.
    number INTEGER NOT NULL,
    -- Retention has taken what lies before.
    start INTEGER NOT NULL DEFAULT 0,
    -- Offset of the next.
    next INTEGER NOT NULL DEFAULT 0,
    -- Of the messages from start on.
    bytes INTEGER NOT NULL DEFAULT 0,
    appended INTEGER NOT NULL DEFAULT 0,
    UNIQUE (place, number)
) STRICT;

-- Messages in topics: partition << 43 | offset.
CREATE TABLE log (
    key INTEGER PRIMARY KEY,
    id ANY NOT NULL,
    type TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    appended INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    rest BLOB NOT NULL,
    payload BLOB NOT NULL
) STRICT;

-- The greatest timestamp of each 1024 offsets: partition << 43 | first offset.
CREATE TABLE log_time (
    key INTEGER PRIMARY KEY,
    timestamp INTEGER NOT NULL
) STRICT;

CREATE TABLE consumer_group (
    consumer_group INTEGER PRIMARY KEY,
    place INTEGER NOT NULL REFERENCES place (place),
    name TEXT NOT NULL,
    created INTEGER NOT NULL,
    UNIQUE (place, name)
) STRICT;

CREATE TABLE progress (
    consumer_group INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    -- First offset that was never handed over.
    handed INTEGER NOT NULL,
    -- What of those below is settled, in a form of the broker's.
    settled BLOB NOT NULL,
    PRIMARY KEY (consumer_group, partition)
) STRICT, WITHOUT ROWID;

-- What is noted of messages in topics, for each group. The key is that of log.
CREATE TABLE retry (
    consumer_group INTEGER NOT NULL,
    key INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    out INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    due INTEGER,
    failures TEXT,
    PRIMARY KEY (consumer_group, key)
) STRICT, WITHOUT ROWID;

-- Attempts on messages of brokers that do not count them.
CREATE TABLE ledger (
    place TEXT NOT NULL,
    message TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    out INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    due INTEGER,
    failures TEXT,
    changed INTEGER NOT NULL,
    PRIMARY KEY (place, message)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;
