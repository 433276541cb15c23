-- Triggers that change the ledger with the rows it counts: no way of making or ending something can forget it, and it is
-- right in every commit (daemon/decisions/0007-ledger-by-trigger.md). They are there only while there are limits.
-- A version that changes one drops them all in a migration; the next opening makes them anew.

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
