"""The package inside other people's: thin classes over `select`, `losses` and `models`.

Each module imports the library that it is named after, and nothing in pyfast imports these.
"""
