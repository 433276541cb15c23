"""How it lasts: one folder per database, each with its `store.py`, `queue.py`, `connection.py` and migrations.

No decisions here. The folders mirror each other method by method; `tests/storage` runs one suite on all of them.
"""
