"""Backs up every named Docker volume of a host; docs/ARCHITECTURE.md is the map."""

__version__ = "0.1.0"
