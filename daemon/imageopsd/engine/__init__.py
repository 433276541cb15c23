"""What we do: the verbs every door calls, the way of a job into the store, the workers, the upkeep, the bus.

No SQL, no HTTP, no provider's name; nothing here calls telemetry, it publishes events and others listen.
"""
