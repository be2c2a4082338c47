"""Preference data as tables: the formats that people keep it in."""

from pyfast.tables.formats import FORMATS, Format, find, read
from pyfast.tables.records import Record

__all__ = ["FORMATS", "Format", "Record", "find", "read"]
