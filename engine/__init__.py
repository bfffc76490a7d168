"""The backup engine: a pure library. It reads no settings, no clock and no environment, and prints nothing."""

__version__ = "0.1.0"
