-- What each resource takes of its project's quotas, beside its record, so that nobody opens records to count.
ALTER TABLE resources ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved IN (0, 1));  -- not published yet
ALTER TABLE resources ADD COLUMN size_gb INTEGER NOT NULL DEFAULT 0;       -- virtual size of an image
ALTER TABLE resources ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0;  -- on the device, as far as known

UPDATE resources SET
    reserved = json_extract(record, '$.status') IN ('PENDING', 'CREATING', 'UPLOADING'),
    size_gb = iif(collection = 'images', coalesce(CAST(json_extract(record, '$.diskSizeGb') AS INTEGER), 1), 0);

-- What a count needs rides along in an index that is there anyway: one more would cost each insert as much as the ledger.
DROP INDEX resources_by_age;
CREATE INDEX resources_by_age ON resources (project, collection, id, reserved, size_gb, stored_bytes);

-- What each project uses and has reserved of each metric, kept by the triggers of `ledger.sql` while there are limits.
CREATE TABLE ledger (
    project  TEXT NOT NULL,
    metric   TEXT NOT NULL,
    used     INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (project, metric)
) STRICT, WITHOUT ROWID;

-- When an image was last asked for from a source, for limits on that; nothing older than their window is kept.
CREATE TABLE inserts (
    operation_id INTEGER PRIMARY KEY,
    project      TEXT NOT NULL,
    source       BLOB NOT NULL,          -- a hash: a URL may be long
    at           INTEGER NOT NULL        -- unix milliseconds
) STRICT;

CREATE INDEX inserts_by_source ON inserts (project, source);
CREATE INDEX inserts_by_age ON inserts (at);
