-- Customers' keys, sealed (daemon/decisions/0006-customer-keys.md). In the task, so that whatever ends it erases them.
ALTER TABLE tasks ADD COLUMN keys TEXT;
