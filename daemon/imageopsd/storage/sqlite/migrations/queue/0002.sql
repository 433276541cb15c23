-- One row while the starting of operations is paused.
CREATE TABLE pause (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    since  INTEGER NOT NULL,             -- unix milliseconds
    reason TEXT    NOT NULL
) STRICT;

-- Dead letters are asked for by the ids that their submitters know.
CREATE INDEX dead_letters_by_id ON dead_letters (id);
