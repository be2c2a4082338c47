import pytest


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
