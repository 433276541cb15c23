"""`imageopsd demo`: the main job, from nothing to a stored image, in front of your eyes."""

from imageopsd.cli.demo.command import demo

__all__ = ["demo"]
