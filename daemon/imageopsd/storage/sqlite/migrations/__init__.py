"""Numbered schemas: `state/0001.sql` makes version 1 out of an empty file, `0002.sql` version 2 out of 1 …"""
