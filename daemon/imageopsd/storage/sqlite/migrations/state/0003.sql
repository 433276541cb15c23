-- What each resource takes of its project's quotas, beside its record, so that nobody opens records to count.
ALTER TABLE resources ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved IN (0, 1));  -- not published yet
ALTER TABLE resources ADD COLUMN size_gb INTEGER NOT NULL DEFAULT 0;       -- virtual size of an image
ALTER TABLE resources ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0;  -- on the device, as far as known

UPDATE resources SET
    reserved = json_extract(record, '$.status') IN ('PENDING', 'CREATING', 'UPLOADING'),
    size_gb = iif(collection = 'images', coalesce(CAST(json_extract(record, '$.diskSizeGb') AS INTEGER), 1), 0);

CREATE INDEX resources_by_holding ON resources (project, collection, reserved, size_gb, stored_bytes);

-- What each project uses and has reserved of each metric. Triggers change it with the rows it counts: no way of
-- making or ending something can forget it, and it is right in every commit (daemon/decisions/0004-ledger-by-trigger.md).
CREATE TABLE ledger (
    project  TEXT NOT NULL,
    metric   TEXT NOT NULL,
    used     INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (project, metric)
) STRICT, WITHOUT ROWID;

INSERT INTO ledger
SELECT project, metric, sum(amount * (1 - reserved)), sum(amount * reserved)
FROM (
    SELECT project, 'compute.googleapis.com/images' AS metric, 1 AS amount, reserved FROM resources
        WHERE collection = 'images'
    UNION ALL SELECT project, 'imageopsd/image_gb', size_gb, reserved FROM resources
    UNION ALL SELECT project, 'imageopsd/operations_in_flight', 1, 0 FROM tasks
)
GROUP BY project, metric;

CREATE TRIGGER ledger_resource_made AFTER INSERT ON resources BEGIN
    INSERT INTO ledger (project, metric, used, reserved)
    SELECT NEW.project, metric, amount * (1 - NEW.reserved), amount * NEW.reserved
    FROM (
        SELECT 'compute.googleapis.com/images' AS metric, NEW.collection = 'images' AS amount
        UNION ALL SELECT 'imageopsd/image_gb', NEW.size_gb
        UNION ALL SELECT 'imageopsd/stored_bytes', NEW.stored_bytes
    )
    WHERE amount != 0
    ON CONFLICT DO UPDATE SET used = used + excluded.used, reserved = reserved + excluded.reserved;
END;

CREATE TRIGGER ledger_resource_changed AFTER UPDATE OF reserved, size_gb, stored_bytes ON resources
WHEN (OLD.reserved, OLD.size_gb, OLD.stored_bytes) IS NOT (NEW.reserved, NEW.size_gb, NEW.stored_bytes) BEGIN
    INSERT INTO ledger (project, metric, used, reserved)
    SELECT NEW.project, metric, after * (1 - NEW.reserved) - before * (1 - OLD.reserved),
        after * NEW.reserved - before * OLD.reserved
    FROM (
        SELECT 'compute.googleapis.com/images' AS metric, OLD.collection = 'images' AS before,
            NEW.collection = 'images' AS after
        UNION ALL SELECT 'imageopsd/image_gb', OLD.size_gb, NEW.size_gb
        UNION ALL SELECT 'imageopsd/stored_bytes', OLD.stored_bytes, NEW.stored_bytes
    )
    WHERE before != 0 OR after != 0
    ON CONFLICT DO UPDATE SET used = used + excluded.used, reserved = reserved + excluded.reserved;
END;

CREATE TRIGGER ledger_resource_gone AFTER DELETE ON resources BEGIN
    INSERT INTO ledger (project, metric, used, reserved)
    SELECT OLD.project, metric, -amount * (1 - OLD.reserved), -amount * OLD.reserved
    FROM (
        SELECT 'compute.googleapis.com/images' AS metric, OLD.collection = 'images' AS amount
        UNION ALL SELECT 'imageopsd/image_gb', OLD.size_gb
        UNION ALL SELECT 'imageopsd/stored_bytes', OLD.stored_bytes
    )
    WHERE amount != 0
    ON CONFLICT DO UPDATE SET used = used + excluded.used, reserved = reserved + excluded.reserved;
END;

CREATE TRIGGER ledger_operation_begun AFTER INSERT ON tasks BEGIN
    INSERT INTO ledger (project, metric, used, reserved)
    VALUES (NEW.project, 'imageopsd/operations_in_flight', 1, 0)
    ON CONFLICT DO UPDATE SET used = used + 1;
END;

CREATE TRIGGER ledger_operation_ended AFTER DELETE ON tasks BEGIN
    UPDATE ledger SET used = used - 1
    WHERE project = OLD.project AND metric = 'imageopsd/operations_in_flight';
END;

-- When an image was last asked for from a source, for limits on that; nothing older than their window is kept.
CREATE TABLE inserts (
    operation_id INTEGER PRIMARY KEY,
    project      TEXT NOT NULL,
    source       BLOB NOT NULL,          -- a hash: a URL may be long
    at           INTEGER NOT NULL        -- unix milliseconds
) STRICT;

CREATE INDEX inserts_by_source ON inserts (project, source);
CREATE INDEX inserts_by_age ON inserts (at);
