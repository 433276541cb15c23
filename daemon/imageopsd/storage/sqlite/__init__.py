"""Records, claims and jobs in two SQLite files of one data directory: `state.db` and `queue.db`.

Two files, because a submitting process must never wait for, or block, the writer of the records.
"""
