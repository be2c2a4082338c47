"""Which model families are scored exactly, and how: the table in docs/families.md.

For every causal language model of transformers a tiny one with random weights is made, and its
groups are scored as `GroupScorer` scores them, in float32 and in bfloat16; the truth is the model
called on one prompt and response at a time (in bfloat16 the same weights computed in float32, so
that the type's own error is seen: beside it stands that of the model itself).

    python benchmarks/families.py                     # all of them; a minute or ten
    python benchmarks/families.py llama mpt           # some, by model type
    python benchmarks/families.py --out docs/families.md
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pyfast.models.shared_prompt import GroupScorer

VOCABULARY = 96
MOST_PARAMETERS = 2e7  # else it was not made tiny
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 512,
    "n_inner": 48,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 512,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "attention_hidden_size": 32,
    "state_size": 8,
    "rescale_every": 0,
    "lru_width": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "is_decoder": True,
    "use_cache": False,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "mpt": {"attn_config": {"attn_impl": "eager", "alibi": True}},
    "falcon": {"alibi": True, "num_kv_heads": 2, "new_decoder_architecture": False},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "ctrl": {"dff": 48, "n_layer": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 64},
    "jamba": {"num_hidden_layers": 8},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "llama4_text": {"intermediate_size_mlp": 48, "pad_token_id": 0},
    "xlnet": {"d_inner": 48, "n_layer": 2},
    "xlm": {"emb_dim": 32},
}
GROUPS = [
    ([7, 9, 12, 7, 20, 33], [[5, 6, 13], [8], [9, 9, 11, 10, 11, 12, 13] * 4, [40, 41]]),
    ([6], [[14, 3], [14, 3], [17, 8, 9, 10]]),
]

HEAD = """# Model families: scoring

How the log-probs of a group are made for your model's family, in training and in
[a loop of your own](use/plain-loop.md): what `GroupScorer` makes of every causal language model of
transformers {version}, tried on tiny random models
(`python benchmarks/families.py --out docs/families.md`). The number is the largest
error of a log-probability in nats, against the model called on one response at a time; in bfloat16
against the same weights computed in float32, and in brackets the error of the model's own calls.

- *shared*: a prompt is read once for all its responses
- *together*: it is read with every response, in padded batches
- *alone*: every response is a call of its own, because company would change it
- *refused*: with the reason that is raised

"""

Column = Callable[[Any], str]


def tiny_config(kind: type) -> Any:
    """Return a small configuration of this class."""
    known = kind()
    settings = {name: value for name, value in TINY.items() if _settable(known, name)}
    if "qk_rope_head_dim" in settings:  # latent attention has as many of both
        settings["num_key_value_heads"] = settings["num_attention_heads"]
        settings.pop("head_dim", None)
    settings |= SPECIAL.get(getattr(kind, "model_type", ""), {})
    if _settable(known, "layer_types") and known.layer_types and "num_hidden_layers" in settings:
        kinds = list(dict.fromkeys(known.layer_types))
        settings["num_hidden_layers"] = max(2, len(kinds))
        settings["layer_types"] = (kinds * 2)[: settings["num_hidden_layers"]]
    return kind(**settings)


def _settable(config: Any, name: str) -> bool:
    own = getattr(type(config), name, None)
    if isinstance(own, property) and own.fset is None:
        return False
    try:
        return hasattr(config, name)
    except Exception:  # some raise to say that it differs from layer to layer
        return False


def make(config: Any, architecture: type) -> Any:
    """Return a random model in evaluation mode."""
    with torch.device("meta"):
        size = sum(p.numel() for p in architecture(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"a tiny one has {size / 1e6:.0f} million parameters")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture(config).eval()


@torch.no_grad()
def one_at_a_time(model: Any) -> torch.Tensor:
    """Score each response of `GROUPS` in a call of its own."""
    found = []
    for prompt, responses in GROUPS:
        for response in responses:
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
            logps = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
            found.append(logps.gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(found)


def scored(model: Any) -> str:
    """Say how a model is scored, and how far off: the text of a cell."""
    half = next(model.parameters()).dtype == torch.bfloat16
    try:
        with torch.no_grad():
            scorer = GroupScorer(model)
            found = scorer.logps(GROUPS)
    except ValueError as error:
        return f"refused: {error}"
    truth = one_at_a_time(copy.deepcopy(model).float() if half else model)
    error = float((found - truth).abs().max())
    own = float((one_at_a_time(model) - truth).abs().max()) if half else 0.0
    right = error <= (3 * own + 0.05 if half else 1e-3)
    how = "shared" if scorer.why_apart(GROUPS) is None else "together"
    how = "alone" if scorer.why_alone is not None else how
    text = f"{how}, {error:.0e}" + (f" ({own:.0e})" if half else "")
    return text if right else f"WRONG: {text}"


COLUMNS: dict[str, Column] = {
    "float32": scored,
    "bfloat16": lambda model: scored(model.bfloat16()),
}


def rows(wanted: list[str]) -> Iterator[list[str]]:
    """Make the rows of the table, one a family."""
    for kind, architecture in sorted(
        MODEL_FOR_CAUSAL_LM_MAPPING.items(), key=lambda pair: pair[0].model_type
    ):
        classes = architecture if isinstance(architecture, tuple) else (architecture,)
        name = kind.model_type
        if wanted and name not in wanted:
            continue
        cells = [name, classes[0].__name__]
        try:
            model = make(tiny_config(kind), classes[0])
        except Exception as error:  # no tiny one can be made in this way: it is said so
            yield [*cells, f"not tried: {_line(error)}", *[""] * (len(COLUMNS) - 1)]
            continue
        for column in COLUMNS.values():
            try:
                cells.append(column(model))
            except Exception as error:
                cells.append(f"{_whose(model)}: {_line(error)}")
        yield cells


def _whose(model: Any) -> str:
    """Say whether the tiny model itself raises in this type, or we do."""
    try:
        one_at_a_time(model)
    except Exception:
        return "the tiny model itself raises"
    return "ERROR"


def _line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text}".replace("|", "/")[:110]


def table(lines: list[list[str]]) -> str:
    """Return the table in Markdown."""
    head = ["family", "class", *COLUMNS]
    text = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in text) + "\n"


def main() -> int:
    """Print the table, row by row, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types; all by default")
    parser.add_argument("--out", type=Path, help="a file for the table")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    for line in rows(given.families):
        print(" | ".join(line), flush=True)
        lines.append(line)
    if given.out is not None:
        given.out.write_text(HEAD.format(version=transformers.__version__) + table(lines))
    wrong = [line[0] for line in lines if any("WRONG" in cell for cell in line)]
    if wrong:
        print(f"wrong: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
