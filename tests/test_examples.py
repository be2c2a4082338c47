"""The examples run as they are written."""

import json
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_loop_of_ones_own(tiny_model, tmp_path):
    rows = [
        {
            "prompt": f"tell me about the {topic}",
            "responses": ["good day", "awful hate", "bad rain", "sad sad dog", "nice sun"],
            "scores": [0.9, 0.0, 0.2, 0.1, 0.8],
        }
        for topic in ("day", "dog", "rain")
    ]
    path = tmp_path / "groups.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "plain_loop.py", tiny_model, path, "12"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", done.stdout)]
    margins = [float(x) for x in re.findall(r"margin (-?[\d.]+)", done.stdout)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.05
    assert margins[-1] > margins[0]
