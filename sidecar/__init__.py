"""Backs up every named Docker volume of a host; docs/ARCHITECTURE.md is the map."""
