"""Which model families are sampled fast, by a slower way or not at all, and why.

    python benchmarks/families_sampling.py [--dtype bfloat16] [--out docs/families-sampling.md]

Each is a tiny model with random weights, through `Policy`. Responses are compared token by token
with those of one response at a time without cache or padding, with the adapter beside the weights
and folded into them; log-probs of policy and reference with plain logits of one response at a time.
"""

import argparse
import contextlib
import io
import sys
import warnings

import torch

warnings.filterwarnings("ignore")

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [3.0, 5.0, 7.0, 9.0],
    "original_max_position_embeddings": 24,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}

FAMILIES = {
    "Llama": ("Llama", {}),
    "Llama, dynamic RoPE": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
            "max_position_embeddings": 24,
        },
    ),
    "Mistral": ("Mistral", {"sliding_window": 8}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    "Qwen3-MoE": ("Qwen3Moe", {**EXPERTS, "head_dim": 8}),
    "Qwen3-Next": (
        "Qwen3Next",
        {
            **EXPERTS,
            "head_dim": 8,
            "shared_expert_intermediate_size": 24,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "Mixtral": ("Mixtral", LOCAL),
    "Gemma": ("Gemma", {"head_dim": 8}),
    "Gemma-2": ("Gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "Gemma-3, text": (
        "Gemma3",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    ),
    "Phi-3": ("Phi3", {}),
    "Phi-3, longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24},
    ),
    "GPT-2": ("GPT2", {**OLD, "n_positions": 256}),
    "GPT-J": ("GPTJ", {**OLD, "rotary_dim": 4, "n_positions": 256}),
    "GPT-Neo": (
        "GPTNeo",
        {
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "GPT-NeoX": ("GPTNeoX", {}),
    "OPT": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "MPT": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "Falcon": ("Falcon", {"alibi": False}),
    "Falcon, ALiBi": ("Falcon", {"alibi": True, "new_decoder_architecture": False}),
    "Mamba": ("Mamba", {"state_size": 8}),
    "Mamba-2": ("Mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "RWKV": ("Rwkv", {"attention_hidden_size": 32, "context_length": 256}),
    "Jamba": (
        "Jamba",
        {
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Falcon-H1": (
        "FalconH1",
        {
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "Bamba": (
        "Bamba",
        {
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "Zamba-2": (
        "Zamba2",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
        },
    ),
    "RecurrentGemma": (
        "RecurrentGemma",
        {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3, "head_dim": 8},
    ),
    "Granite": ("Granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "Granite-MoE": ("GraniteMoe", {**LOCAL, "logits_scaling": 3.0}),
    "Cohere": ("Cohere", {"logit_scale": 0.5}),
    "Cohere-2": ("Cohere2", {"logit_scale": 0.5, "sliding_window": 8}),
    "OLMo-2": ("Olmo2", {}),
    "OLMo-3": ("Olmo3", {"sliding_window": 8}),
    "DeepSeek-V3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
    ),
    "Llama-4, text": (
        "Llama4",
        {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
        },
    ),
    "StableLM": ("StableLm", {}),
    "SmolLM3": ("SmolLM3", {}),
    "GPT-OSS": ("GptOss", {**LOCAL, "head_dim": 8, "sliding_window": 8}),
    "GLM-4": ("Glm4", {"head_dim": 8}),
    "ERNIE-4.5": ("Ernie4_5", {"head_dim": 8}),
    "LFM2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "MiniMax": ("MiniMax", {**LOCAL, "head_dim": 8, "block_size": 8}),
    "XGLM": ("XGLM", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "CTRL": ("CTRL", {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "CodeGen": ("CodeGen", {**OLD, "rotary_dim": 4, "n_positions": 256}),
    "BART, as a causal model": (
        "Bart",
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    ),
    "BigBird, as a causal model": (
        "BigBird",
        {"is_decoder": False, "attention_type": "original_full"},
    ),
}


TEXT = """# Model families: sampling

How [training](train.md) samples responses from your model's family, and whether it is exact.
This is what `python benchmarks/families_sampling.py` printed ({}, transformers {}; tiny models with
random weights).

*exact*: 9 of 9 responses to prompts of different lengths are, token by token, those of one response
at a time without cache or padding. After it stands the slower way that was gone, and why the fast
one was not. *adapter folded in*: the same with `sampling.merge`, or why the adapter stayed beside
the weights. *log-probs*: the largest difference, of policy and reference, to plain logits of one
response at a time, and whether a small step along the gradient of a response's log-prob raises it.

"""


def make(name):
    """Return a tiny model of a family with random weights, in evaluation mode."""
    import transformers

    kind, changes = FAMILIES[name]
    config_class = next(
        getattr(transformers, found)
        for found in (f"{kind}TextConfig", f"{kind}Config")
        if hasattr(transformers, found)
    )
    config = config_class(**{**SHAPE, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # further from nothing than the usual start
            if parameter.ndim >= 2:
                parameter.normal_(std=0.25)
    return model.eval()


def tokenizer():
    """Return a tokenizer of as many words as the models have tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3"
    )


PROMPTS = [[5, 9, 12, 7, 20, 31, 8, 44, 45, 46, 47, 48], [4, 5], [6] * 15]
TOKENS = 12


@torch.no_grad()
def slow_sample(model, prompt, uniform):
    """Return one response, without cache, padding or batch, and how sure each token was."""
    tokens, margins = [], []
    for u in uniform:
        device = next(model.parameters()).device
        model(input_ids=torch.tensor([[5]], device=device))  # dynamic RoPE forgets longer rows
        logits = model(input_ids=torch.tensor([prompt + tokens], device=device)).logits[0, -1]
        cumulative = logits.float().softmax(-1).double().cumsum(0)
        cumulative = (cumulative / cumulative[-1]).cpu()
        tokens.append(int((cumulative <= u).sum()))
        margins.append(float((cumulative - u).abs().min()))
        if tokens[-1] == 2:
            break
    return tokens, margins


def differs(policy, samples, seeds):
    """Return how many responses differ from the truth, but for what rounding decided."""
    eps = torch.finfo(next(policy.model.parameters()).dtype).eps
    wrong = 0
    for prompt, seed, sample in zip(PROMPTS, seeds, samples, strict=True):
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(3, TOKENS, 1, generator=generator, dtype=torch.float64)
        for row in range(3):
            expected, margins = slow_sample(policy.model, prompt, uniform[row].flatten())
            ours = sample.token_ids[row]
            first = next(
                (i for i, (a, b) in enumerate(zip(expected, ours, strict=False)) if a != b), None
            )
            wrong += first is not None and margins[first] > 200 * eps
    return wrong


def check(name, dtype):
    """Return what the table says of a family: sampling, merging, scoring and one step."""
    from pyfast.train.config import SamplingConfig
    from pyfast.train.policy.policy import Policy

    row = {}
    try:
        model = make(name).to(dtype)
    except Exception as error:
        return {"model": "not made: " + first_line(error)}
    try:
        policy = Policy(model, tokenizer(), rank=2)
    except ValueError as error:
        return {"sampling": f"refused: {error}"}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise)
    seeds = [7, 8, 9]
    settings = {"max_new_tokens": TOKENS, "temperature": 1.0, "seeds": seeds}
    try:
        samples = policy.sample(PROMPTS, 3, **settings)
        wrong = differs(policy, samples, seeds)
        how = "exact" if policy.why_slower is None else f"exact, {policy.why_slower}"
        row["sampling"] = f"WRONG in {wrong} of 9" if wrong else how
    except ValueError as error:
        row["sampling"] = f"refused: {error}"
    try:
        merged = policy.answer(PROMPTS, 3, SamplingConfig(3, TOKENS, 1.0), seeds)
        wrong = differs(policy, merged, seeds)
        how = f"no: {policy.why_not_merged}" if policy.why_not_merged else "exact"
        row["merged"] = f"WRONG in {wrong} of 9" if wrong else how
    except ValueError as error:
        row["merged"] = f"refused: {error}"
    try:
        row["step"] = step(policy)
    except ValueError as error:
        row["step"] = f"refused: {error}"
    return row


def step(policy):
    """Return whether log-probs are those of one response at a time, and a step changes them."""
    responses = [[5, 6, 2], [8], [9, 9, 9, 10, 11, 12, 13], [4, 2]]
    worst = 0.0
    for reference in (False, True):
        ours = policy.logps(PROMPTS[0], responses, reference=reference).detach()
        for response, logp in zip(responses, ours, strict=True):
            with torch.no_grad(), contextlib.ExitStack() as stack:
                if reference:
                    stack.enter_context(policy.model.disable_adapter())
                tokens = torch.tensor([PROMPTS[0] + response])
                logits = policy.model(input_ids=tokens).logits[0].float()
            at = torch.arange(len(PROMPTS[0]) - 1, len(tokens[0]) - 1)
            truth = logits.log_softmax(-1)[at, torch.tensor(response)].sum()
            worst = max(worst, float((truth - logp).abs()))
    before = policy.logps(PROMPTS[0], responses)
    (-before[0]).backward()
    parameters = policy.trainable().values()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.SGD(parameters, float(1e-3 / norm)).step()
    after = policy.logps(PROMPTS[0], responses).detach()
    moved = "a step helps" if after[0] > before[0] else "A STEP HURTS"
    return f"{worst:.0e} nats, {moved}"


def first_line(error):
    """Return an error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main():
    """Print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    lines = ["| family | sampling | adapter folded in | log-probs |", "|---|---|---|---|"]
    for name in arguments.names or FAMILIES:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                row = check(name, getattr(torch, arguments.dtype))
        except Exception as error:
            row = {"sampling": f"FAILED: {type(error).__name__}: {first_line(error)}"}
        cells = [row.get("model") or row.get("sampling", "")]
        lines.append(
            "| " + " | ".join([name, *cells, row.get("merged", ""), row.get("step", "")]) + " |"
        )
        print(lines[-1], flush=True)
    if arguments.out:
        with open(arguments.out, "w") as stream:
            stream.write(TEXT.format(arguments.dtype, transformers.__version__))
            stream.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
