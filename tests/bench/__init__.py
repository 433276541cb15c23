"""`make bench`: figures as ratios against the machine's own limit or a well-known tool, measured in the same run."""
