-- Whether the effect may be half made: from a claim on, until the backend has said that it left nothing.
ALTER TABLE tasks ADD COLUMN begun INTEGER NOT NULL DEFAULT 0 CHECK (begun IN (0, 1));

UPDATE tasks SET begun = 1
    WHERE (SELECT operations.record ->> '$.startTime' FROM operations WHERE operations.id = tasks.operation_id) IS NOT NULL;
