import pytest

_TABLE = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[_TABLE] = []


@pytest.fixture
def parity(request):
    """Keep a line of the table that a run of tests ends with: how far ours is from TRL's."""

    def line(*apart, what="ours from TRL's"):
        figures = "  ".join(f"{value:.1e}" for value in apart)
        request.config.stash[_TABLE].append(f"{request.node.name:<75}{what:<22}{figures}")

    return line


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash[_TABLE]:
        terminalreporter.section(
            "furthest apart: loss, margins, gradient norm; from float32: gradient"
        )
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def pairs():
    """Rows of pairs in the words of the made-up tokenizer."""
    import random

    from datasets import Dataset

    words = ["good", "great", "happy", "love", "nice", "bad", "sad", "awful", "the", "day", "dog"]
    draw = random.Random(0)

    def text(least, most):
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    rows = [
        {"prompt": text(2, 6) + " ", "chosen": text(1, 8), "rejected": text(1, 8)}
        for _ in range(24)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
