"""Seeds of rows: a row draws by its own prompt, whatever file or batch it comes in."""

import zlib


def of_prompt(prompt: str, seed: int) -> int:
    """Return the seed, below 2**64, of what is random for a prompt's row."""
    own = zlib.crc32(prompt.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF)
    return own | (seed >> 32) << 32
