"""What was asked for: every option with its default, and how the layers make one set of values."""

from imageopsd.config.loading import ConfigError, Loaded, load
from imageopsd.config.settings import Settings

__all__ = ["ConfigError", "Loaded", "Settings", "load"]
