-- The record of every operation. `record` is the Compute JSON that clients read; the columns beside it are
-- what lists and idempotency look up. Rows are many and stay; nothing hot happens here but by primary key.
CREATE TABLE operations (
    id          INTEGER PRIMARY KEY,     -- time-ordered, made by the daemon, never reused
    project     TEXT NOT NULL,
    request_id  TEXT,
    fingerprint BLOB,                    -- of the request, to tell a repeat from a reuse of its id
    done        INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),
    record      TEXT NOT NULL,
    request     TEXT NOT NULL
) STRICT;

CREATE INDEX operations_by_project ON operations (project, id);
CREATE UNIQUE INDEX operations_by_request ON operations (request_id, project) WHERE request_id IS NOT NULL;

-- One narrow row for each operation that is not DONE: who works on it, when it may be worked on.
CREATE TABLE tasks (
    operation_id INTEGER PRIMARY KEY REFERENCES operations (id),
    lane         TEXT    NOT NULL,       -- operations of one lane run one at a time, in order
    runnable     INTEGER NOT NULL CHECK (runnable IN (0, 1)),  -- first of its lane
    not_before   INTEGER NOT NULL,       -- unix milliseconds; 0 = at once
    attempt      INTEGER NOT NULL DEFAULT 0,
    token        TEXT,                   -- of the newest claim while there is one
    owner        TEXT,                   -- the boot that holds the claim
    lease_until  INTEGER,                -- unix milliseconds
    checkpoint   BLOB,
    CHECK ((token IS NULL) = (owner IS NULL) AND (token IS NULL) = (lease_until IS NULL))
) STRICT;

CREATE INDEX tasks_ready ON tasks (not_before, operation_id) WHERE runnable = 1 AND token IS NULL;
CREATE INDEX tasks_claimed ON tasks (owner, lease_until) WHERE token IS NOT NULL;
CREATE UNIQUE INDEX tasks_head ON tasks (lane) WHERE runnable = 1;
CREATE INDEX tasks_by_lane ON tasks (lane, operation_id);

-- The catalogue: images and machine images. `record` is the Compute JSON of the resource.
CREATE TABLE resources (
    id         INTEGER PRIMARY KEY,
    collection TEXT NOT NULL,            -- 'images' or 'machineImages'
    project    TEXT NOT NULL,
    name       TEXT NOT NULL,
    family     TEXT,                     -- only while READY and not deprecated: what a family resolves to
    record     TEXT NOT NULL,
    policy     TEXT,                     -- the IAM policy, once one was set
    UNIQUE (project, collection, name)
) STRICT;

CREATE INDEX resources_by_family ON resources (project, family, id) WHERE family IS NOT NULL;
CREATE INDEX resources_by_age ON resources (project, collection, id);

-- Kept in the commit they count, so that nobody counts rows.
CREATE TABLE totals (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO totals VALUES ('pending', 0), ('running', 0), ('succeeded', 0), ('failed', 0);

-- Every start of a daemon on this file.
CREATE TABLE boots (
    id      TEXT PRIMARY KEY,
    pid     INTEGER NOT NULL,
    started INTEGER NOT NULL,
    ended   INTEGER                      -- NULL for one that was killed
) STRICT;
