-- Whether the effect may be made, whole or half, and nobody heard of it: a claim ended without the backend's word.
ALTER TABLE tasks ADD COLUMN doubtful INTEGER NOT NULL DEFAULT 0 CHECK (doubtful IN (0, 1));

UPDATE tasks SET doubtful = 1
    WHERE (SELECT operations.record ->> '$.startTime' FROM operations WHERE operations.id = tasks.operation_id) IS NOT NULL;
