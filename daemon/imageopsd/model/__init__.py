"""What is true: operations, images, requests, errors, the state machine, the retry policy.

Nothing here reads a clock, awaits, opens a socket or logs; time is an argument.
"""
