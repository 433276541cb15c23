"""What was asked for: every option with its default, how the layers make one set of values, what may change later."""

from imageopsd.config.loading import ConfigError, Loaded, load
from imageopsd.config.settings import Settings

__all__ = ["ConfigError", "Loaded", "Settings", "load"]
