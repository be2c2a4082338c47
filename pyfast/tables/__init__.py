"""Preference data as tables: the formats that people keep it in."""

from pyfast.tables.formats import FORMATS, Format, Record, find, read

__all__ = ["FORMATS", "Format", "Record", "find", "read"]
