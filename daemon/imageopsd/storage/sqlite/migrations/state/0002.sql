-- Who may go next: inside a project by rank, among projects by turns (storage/sqlite/turns.py).
ALTER TABLE tasks ADD COLUMN project TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;  -- unix milliseconds: when accepted, less the head start of its priority
ALTER TABLE tasks ADD COLUMN makes INTEGER NOT NULL DEFAULT 1 CHECK (makes IN (0, 1));  -- something; 0 = it changes or removes
ALTER TABLE tasks ADD COLUMN deadline INTEGER;                 -- unix milliseconds; NULL = none
ALTER TABLE tasks ADD COLUMN cancel TEXT;                      -- JSON of the cancellation that was asked for while it was claimed

UPDATE tasks SET project = (SELECT operations.project FROM operations WHERE operations.id = tasks.operation_id);

DROP INDEX tasks_ready;
CREATE INDEX tasks_ready ON tasks (project, rank, operation_id)
    WHERE runnable = 1 AND token IS NULL AND not_before = 0;
CREATE INDEX tasks_ready_changes ON tasks (project, rank, operation_id)
    WHERE runnable = 1 AND token IS NULL AND not_before = 0 AND makes = 0;
CREATE INDEX tasks_deferred ON tasks (not_before) WHERE runnable = 1 AND token IS NULL AND not_before > 0;
CREATE INDEX tasks_deadline ON tasks (deadline) WHERE deadline IS NOT NULL;

-- What may be forgotten, by outcome and age: ids are ordered by time.
ALTER TABLE operations ADD COLUMN failed INTEGER NOT NULL DEFAULT 0 CHECK (failed IN (0, 1));
UPDATE operations SET failed = 1 WHERE done = 1 AND record LIKE '%"error":{"errors":%';
CREATE INDEX operations_ended ON operations (failed, id) WHERE done = 1;
