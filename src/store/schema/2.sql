-- Layout 2: marks, for logs of other brokers. Everything from low to high may have been handed over; a message between
-- them of which the ledger says nothing was out when the process ended.
CREATE TABLE mark (
    place TEXT NOT NULL,
    -- Where a pattern was subscribed to; else empty.
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    low INTEGER NOT NULL,
    high INTEGER NOT NULL,
    PRIMARY KEY (place, topic, partition)
) STRICT, WITHOUT ROWID;
