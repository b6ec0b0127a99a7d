"""The version of this library, as in its project file; to read the installed one is slow."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
