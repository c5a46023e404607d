-- Names beside numbers, keys taken apart, times to be read: for people with `sqlite3`. Nothing of the engine reads them.

CREATE VIEW queue_messages AS
SELECT
    place.name AS queue,
    CASE (key >> 47) & 15 WHEN 15 THEN 'later' ELSE CAST((key >> 47) & 15 AS TEXT) END AS lane,
    key & 140737488355327 AS sequence,
    CASE typeof(message.id) WHEN 'text' THEN message.id ELSE
        lower(format('%s-%s-%s-%s-%s', substr(hex(message.id), 1, 8), substr(hex(message.id), 9, 4),
            substr(hex(message.id), 13, 4), substr(hex(message.id), 17, 4), substr(hex(message.id), 21))) END AS id,
    type,
    datetime(timestamp / 1000, 'unixepoch') AS published,
    CASE
        WHEN attempt.key IS NULL THEN iif(key & 140737488355327 <= lane.handed, 'out', 'ready')
        WHEN attempt.out THEN 'out'
        WHEN attempt.due IS NOT NULL THEN 'waits until ' || datetime(attempt.due / 1000, 'unixepoch')
        ELSE 'ready'
    END AS state,
    coalesce(attempt.attempt, 1) AS attempt,
    coalesce(attempt.crashes, 0) AS crashes,
    message.bytes AS bytes,
    CAST(payload AS TEXT) AS payload,
    attempt.failures AS failures,
    message.key AS key
FROM message
LEFT JOIN place ON place.place = message.key >> 51
LEFT JOIN lane ON lane.lane = message.key >> 47
LEFT JOIN attempt USING (key);

-- One row a queue.
CREATE VIEW queues AS
SELECT
    place.name AS queue,
    coalesce(sum(lane.count), 0) AS messages,
    coalesce(sum(lane.bytes), 0) AS bytes,
    coalesce(sum(lane.waiting), 0) AS waiting,
    datetime(created / 1000, 'unixepoch') AS created,
    place.place AS place
FROM place
LEFT JOIN lane ON lane.lane >> 4 = place.place
WHERE kind = 'queue'
GROUP BY place.place;

-- What waits, in queues.
CREATE VIEW queue_waiting AS
SELECT
    place.name AS queue,
    datetime(due / 1000, 'unixepoch') AS due,
    key & 140737488355327 AS sequence,
    attempt,
    failures,
    key
FROM attempt
JOIN place ON place.place = key >> 51
WHERE due IS NOT NULL;

-- One row a partition.
CREATE VIEW topics AS
SELECT
    place.name AS topic,
    number AS partition,
    start,
    next,
    next - start AS messages,
    bytes,
    CASE appended WHEN 0 THEN NULL ELSE datetime(appended / 1000, 'unixepoch') END AS appended,
    partition.partition AS partition_key
FROM partition
JOIN place USING (place);

CREATE VIEW topic_messages AS
SELECT
    place.name AS topic,
    partition.number AS partition,
    key & 8796093022207 AS "offset",
    CASE typeof(log.id) WHEN 'text' THEN log.id ELSE
        lower(format('%s-%s-%s-%s-%s', substr(hex(log.id), 1, 8), substr(hex(log.id), 9, 4),
            substr(hex(log.id), 13, 4), substr(hex(log.id), 17, 4), substr(hex(log.id), 21))) END AS id,
    type,
    datetime(timestamp / 1000, 'unixepoch') AS published,
    datetime(log.appended / 1000, 'unixepoch') AS appended,
    log.bytes AS bytes,
    CAST(payload AS TEXT) AS payload,
    key
FROM log
LEFT JOIN partition ON partition.partition = log.key >> 43
LEFT JOIN place USING (place);

-- One row a group and partition. The lag counts what was never handed over.
CREATE VIEW groups AS
SELECT
    place.name AS topic,
    consumer_group.name AS consumer_group,
    partition.number AS partition,
    coalesce(progress.handed, partition.start) AS handed,
    partition.next - max(coalesce(progress.handed, partition.start), partition.start) AS lag,
    (SELECT count(*) FROM retry
        WHERE retry.consumer_group = consumer_group.consumer_group
        AND retry.key BETWEEN partition.partition << 43 AND (partition.partition << 43 | 8796093022207)) AS retries
FROM consumer_group
JOIN place USING (place)
JOIN partition USING (place)
LEFT JOIN progress ON progress.consumer_group = consumer_group.consumer_group
    AND progress.partition = partition.partition;
