-- Jobs as they were submitted, until they are operations. AUTOINCREMENT: a receipt is never used again,
-- so settling twice cannot hit a later job.
CREATE TABLE jobs (
    receipt   INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT    NOT NULL,
    submitted INTEGER NOT NULL,          -- unix milliseconds
    body      BLOB    NOT NULL
) STRICT;

CREATE TABLE dead_letters (
    receipt   INTEGER PRIMARY KEY,
    id        TEXT    NOT NULL,
    submitted INTEGER NOT NULL,
    refused   INTEGER NOT NULL,
    reason    TEXT    NOT NULL,
    body      BLOB    NOT NULL
) STRICT;

-- Kept in the commit they count, so that nobody counts rows.
CREATE TABLE totals (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO totals VALUES ('waiting', 0), ('dead', 0);
