"""The version of this library, repeated here because reading the installed one is slow."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
