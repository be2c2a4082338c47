"""Looking at pools, and stopping them."""

from pyfast.sketch import (
    _store,
)  # fmt: skip


def content(folder):
    """All bytes of a pool."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stopped(monkeypatch, after=0):
    """Interrupt `Store.write` after some passes."""
    plain, runs = _store.Store.write, []

    def write(self, *arguments):
        if len(runs) == after:
            raise KeyboardInterrupt
        runs.append(1)
        plain(self, *arguments)

    monkeypatch.setattr(_store.Store, "write", write)
