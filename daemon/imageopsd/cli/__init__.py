"""The command line: the daemon itself, and what a person at a terminal does with it."""
