-- What is left of operations that were deleted while their request ids still counted: enough to know a repeat and to
-- answer it. A table of its own, so that nothing that reads operations has to leave anything out.
CREATE TABLE tombstones (
    id          INTEGER PRIMARY KEY,     -- the operation's: its age, and never given to another
    project     TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    record      TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX tombstones_by_request ON tombstones (request_id, project);
