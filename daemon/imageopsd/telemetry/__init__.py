"""Who listens: every metric name, one log line an event, a trace an operation, the picture that `/status` shows,
systemd's ear.

Observers of the engine's events; nothing here is called by the engine.
"""
