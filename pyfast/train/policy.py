"""The policy: a causal language model with a LoRA adapter.

The N responses to one prompt share it, so the prompt goes through the model once. Sampling repeats
its keys and values for the N rows, with several prompts padded on the left, where a mask hides the
padding; scoring lays prompt and responses out in one row (`shared_prompt`). The results are those
of one response at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyfast._files import write_folder
from pyfast.models import checkpointing, lora
from pyfast.models.shared_prompt import GroupScorer
from pyfast.train.config import PolicyConfig, SamplingConfig
from pyfast.train.errors import UserError
from pyfast.train.files import cache_dir, resolve, sha256
from pyfast.train.seeds import derive


@dataclass(frozen=True)
class Samples:
    """Responses as they were sampled.

    Attributes
    ----------
    token_ids : list of N lists of int
        The end token included, where the response has one.
    texts : list of str, length N
        Decoded without special tokens.
    finished : list of bool, length N
        False where the response was cut at the longest allowed length: it has no end token.
    """

    token_ids: list[list[int]]
    texts: list[str]
    finished: list[bool]


class Policy:
    """A causal language model with a trainable LoRA adapter; its reference is the adapter off.

    Parameters
    ----------
    model : transformers causal language model
        It is frozen and switched to evaluation mode (no dropout, in training neither), and gets
        an adapter on every linear layer but the head.
    tokenizer : transformers tokenizer
        With a chat template, prompts are given as a user's turn.
    rank, alpha : int, float
        The adapter adds ``alpha / rank * B A`` to each linear layer; B starts at zero.
    seed : int
        Seed of the start of A.
    gradient_checkpointing : {"none", "selective", "full"}
        What scoring keeps for the backward pass (`checkpointing`).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        rank: int = 16,
        alpha: float = 32.0,
        seed: int = 0,
        gradient_checkpointing: str = "none",
    ) -> None:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        self.tokenizer = tokenizer
        self.end_ids = _end_ids(model, tokenizer)
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "adapter"))
            self.model: Any = get_peft_model(model, settings)
        lora.fuse(self.model)
        self.model.eval()
        self._checkpointing = gradient_checkpointing
        self._checkpointed: list[torch.nn.Module] = []
        try:
            self._scorer = GroupScorer(self.model)
            if gradient_checkpointing != "none":
                self._checkpointed = checkpointing.layers_to_checkpoint(self.model)
        except ValueError as error:
            raise UserError(f"policy.{error}") from None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def trainable(self) -> dict[str, Tensor]:
        """Return the adapter's parameters by name, in the model's order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter to a folder in peft's layout (safetensors)."""
        self.model.save_pretrained(str(folder), save_embedding_layers=False)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, in the model's chat template if it has one."""
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(prompt)["input_ids"])

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Fold the adapter into the weights for a while: W + alpha/rank B A instead of two paths.

        Sampling is then about a quarter faster, for the memory of a second set of weights. The
        frozen weights are put back, not subtracted back, so that not a bit of them changes.
        """
        from peft.tuners.lora import LoraLayer

        kept = []
        try:
            for layer in self.model.modules():
                if isinstance(layer, LoraLayer):
                    weight = layer.get_base_layer().weight
                    kept.append((weight, weight.data))
                    weight.data = weight.data + layer.get_delta_weight("default").to(weight.dtype)
            with self.model.disable_adapter():
                yield
        finally:
            for weight, original in kept:
                weight.data = original

    @torch.no_grad()
    def sample(
        self,
        prompts: list[list[int]],
        n: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
    ) -> list[Samples]:
        """Sample N responses to each of several prompts, all together.

        Parameters
        ----------
        prompts : list of lists of int
            Tokens of the prompts (`prompt_ids`); shorter ones are padded on the left.
        n : int
            Responses to draw for each.
        max_new_tokens : int
            Tokens after which a response is cut.
        temperature : float
            The next token has probability softmax(logits / temperature).
        seeds : list of int
            One a prompt. The same seed, prompt and weights give the same responses.

        Returns
        -------
        list of Samples
            One a prompt.
        """
        # One uniform number for each row and position, drawn beforehand: neither the other prompts
        # nor the rows that have ended change the numbers of a row.
        uniform = torch.cat([_uniform(seed, n, max_new_tokens) for seed in seeds]).to(self.device)
        ends = torch.tensor(sorted(self.end_ids), device=self.device)
        token_ids: list[list[int]] = [[] for _ in uniform]
        finished = [False] * len(token_ids)

        cache, hidden, mask = self._prefill(prompts)
        cache.batch_repeat_interleave(n)
        hidden, mask = hidden.repeat_interleave(n, dim=0), mask.repeat_interleave(n, dim=0)
        rows = torch.arange(len(token_ids), device=self.device)  # the responses that go on
        for position in range(max_new_tokens):
            logits = self._scorer.lm.logits(hidden) / temperature
            tokens = _draw(logits, uniform[rows, position])
            ended = torch.isin(tokens, ends)
            for row, token, end in zip(rows.tolist(), tokens.tolist(), ended.tolist(), strict=True):
                token_ids[row].append(token)
                finished[row] = end
            if position == max_new_tokens - 1 or ended.all():
                break
            if ended.any():  # rows that have ended cost no more work
                going = (~ended).nonzero().squeeze(1)
                rows, tokens, mask = rows[going], tokens[going], mask[going]
                cache.batch_select_indices(going)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            hidden = self._scorer.lm.backbone(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return [
            Samples(token_ids[i : i + n], texts[i : i + n], finished[i : i + n])
            for i in range(0, len(token_ids), n)
        ]

    def answer(
        self, prompts: list[list[int]], n: int, config: SamplingConfig, seeds: list[int]
    ) -> list[Samples]:
        """Sample (`sample`) as a configuration says."""
        with torch.no_grad(), self.merged() if config.merge else contextlib.nullcontext():
            return self.sample(
                prompts,
                n,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seeds=seeds,
            )

    def logps(
        self, prompt_ids: list[int], responses: list[list[int]], *, reference: bool = False
    ) -> Tensor:
        """Return log pi(y|x) of each response to one prompt.

        Parameters
        ----------
        prompt_ids : list of int
            Tokens of the prompt.
        responses : list of n non-empty lists of int
            Tokens of the responses, exactly as sampled. The sum goes over these: the end token
            counts where there is one, the prompt and the padding do not.
        reference : bool
            Switch the adapter off, and compute no gradient.

        Returns
        -------
        float32 tensor (n,)
            Sums of log-probabilities at temperature 1, in nats.
        """
        with contextlib.ExitStack() as stack:
            if reference:
                stack.enter_context(torch.no_grad())
                stack.enter_context(self.model.disable_adapter())
            else:
                how = self._checkpointing
                stack.enter_context(checkpointing.checkpointed(self._checkpointed, how))
            return self._scorer.logps([(prompt_ids, responses)])

    def _prefill(self, prompts: list[list[int]]) -> tuple[Any, Tensor, Tensor]:
        """Run B prompts once, padded on the left.

        Returns their keys and values, their last hidden states (B, H) and the mask of their real
        tokens (B, longest).
        """
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        mask = mask.to(self.device)
        out = self._scorer.lm.backbone(
            input_ids=tokens.to(self.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
        )
        return out.past_key_values, out.last_hidden_state[:, -1], mask


def _uniform(seed: int, n: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, length, 1, generator=generator, dtype=torch.float64)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token a row by inverting the cumulative distribution, in float64.

    Parameters
    ----------
    logits : float tensor (n, V)
    uniform : float64 tensor (n, 1) in [0, 1)

    Returns
    -------
    int64 tensor (n,)
    """
    cumulative = torch.softmax(logits, dim=-1).double().cumsum(dim=-1)
    # right=True skips tokens of probability zero, also at uniform = 0
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return tokens.squeeze(1).clamp(max=logits.shape[1] - 1)


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a response, by the generation settings and the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = frozenset(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None)
    if not found:
        raise UserError("policy.model: its tokenizer has no end-of-sequence token")
    return found


def load(config: PolicyConfig, seed: int) -> Policy:
    """Load the policy that a configuration names.

    Parameters
    ----------
    config : PolicyConfig
        ``model`` may be a folder, a hub id, a ``.gguf`` file, or ``pkg://PACKAGE/PATH`` of one.
    seed : int
        The run's seed; it sets the start of the adapter.

    Raises
    ------
    UserError
        If there is no such model, in one line.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve(config.model)
    if path is None and (config.model.endswith(".gguf") or config.model[0] in "./~"):
        raise UserError(f"policy.model: no such file or folder: {config.model}")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if path is not None and path.is_file():
            path = gguf_folder(path)
        source = str(path or config.model)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, config.dtype))
        model.to(device)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"policy.model: cannot load {config.model!r}: {reason}") from None
    return Policy(
        model,
        tokenizer,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        seed=seed,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def gguf_folder(path: Path) -> Path:
    """Return a folder with a GGUF file's model as float32 safetensors, converted once.

    The folder lies in the user's cache, named by the file's content, and appears there whole or
    not at all.

    Parameters
    ----------
    path : Path
        A ``.gguf`` file of an architecture that transformers can read.

    Returns
    -------
    Path
        What ``from_pretrained`` of the model and of the tokenizer take.
    """
    folder = cache_dir() / "gguf" / f"{path.stem}-{sha256(path)[:16]}"
    if not folder.is_dir():
        write_folder(folder, lambda beside: _convert_gguf(path, beside))
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    # The weights are plain float32 now, but still marked as quantized, which save_pretrained
    # refuses to write; so the three parts are written by hand. Tied tensors are stored once.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    once: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in model.state_dict().items():
        once.setdefault(tensor.data_ptr(), (key, tensor.contiguous()))
    save_file(dict(once.values()), folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
