"""Nothing lost, nothing twice: a daemon under load is killed again and again, and then everything is counted."""
