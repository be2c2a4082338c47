"""Reward models: sequence classifiers that score the responses to one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyfast.train.errors import UserError
from pyfast.train.files import resolve

if TYPE_CHECKING:
    import torch

SCHEMES = ("model:", "response-model:")
"""What a reward's name begins with: a model that reads prompt and response, or the response."""

_CLOSE = 1e-3
"""What padding may change of a score, as a part of the scores' size; it is rounding."""


class RewardModel:
    """A reward of ``AutoModelForSequenceClassification``, loaded by `load` or at the first call.

    It reads prompt and response as its own tokenizer's chat template puts them, a user's and the
    assistant's turn, or without a template as a pair of texts. A score is the one logit of a model
    that has one. Of several, it is that of the label that is named: its probability (softmax, or
    sigmoid of a multi-label model), or the logit itself of a regression.

    Parameters
    ----------
    spec : str
        ``"model:WHERE"`` or ``"response-model:WHERE"``, which reads the response alone; with
        ``"#LABEL"`` behind, the label's name or number. WHERE is a folder, a hub id or
        ``pkg://PACKAGE/PATH``.
    setting : str
        What errors begin with.
    batch_size : int
        Texts scored at once.

    Attributes
    ----------
    cut : int
        Texts that were too long for the model, so far; they lose tokens of the prompt, from its
        start.

    Raises
    ------
    UserError
        If there is no such folder; when loading: if the model lacks weights, its head's say, or
        has not the label.
    """

    def __init__(self, spec: str, setting: str = "scoring.reward", batch_size: int = 16) -> None:
        self.spec, self.setting, self.batch_size, self.cut = spec, setting, batch_size, 0
        self.__qualname__ = spec  # what errors call it
        self.model: Any = None
        scheme, _, where = spec.partition(":")
        self._alone = scheme == "response-model"
        self.label = ""
        if not Path(where).expanduser().exists():  # a folder may have # in its name
            where, _, self.label = where.partition("#")
        path = resolve(where) if where else None
        if not where or (path is None and where[0] in "./~"):
            raise UserError(f"{setting}: no such folder: {where or spec}")
        if path is not None and not (path / "config.json").is_file():
            raise UserError(f"{setting}: expected a model's folder, {path} has no config.json")
        self.source = str(path or where)

    def load(self, device: torch.device | str = "cpu") -> None:
        """Load the model, once; on the CPU in float32, else in its file's own number type."""
        if self.model is not None:
            return
        import torch
        from transformers import AutoModelForSequenceClassification

        from pyfast.train.policy import pretrained

        self.device = torch.device(device)
        dtype: Any = torch.float32 if self.device.type == "cpu" else "auto"
        kind = AutoModelForSequenceClassification
        model: Any = pretrained.weights(kind, self.source, self.setting, dtype=dtype)
        pretrained.check_finite(model, self.setting)
        self.tokenizer: Any = pretrained.tokenizer(self.source, self.setting)
        self._column, self._share = _column(model.config, self.label, self.setting)
        self._most = _most(model, self.tokenizer)
        self.model = model.requires_grad_(False).eval().to(self.device)
        if self.tokenizer.chat_template and not self._alone:
            self._check_template()
        if not self._may_pad():
            self.batch_size = 1

    def fingerprint(self) -> dict[str, str]:
        """Return what the loaded model is (`fingerprint.of`)."""
        from pyfast.train.policy import fingerprint

        return fingerprint.of(self.model, self.tokenizer)

    def __call__(self, prompt: Any, responses: list[str]) -> list[float]:
        """Score the responses to a prompt: a text, a chat (`Prompt`), or a list of its messages.

        Returns
        -------
        list of float
            One a response.
        """
        self.load()
        rows = [self._tokens(prompt, response) for response in responses]
        scores: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            scores += self._score(rows[start : start + self.batch_size])
        return scores

    def _tokens(self, prompt: Any, response: str) -> dict[str, list[int]]:
        """Return the tokens of one text, cut where the model reads no more."""
        ask, most = self.tokenizer, self._most
        messages = prompt if isinstance(prompt, list) else getattr(prompt, "messages", None)
        turns = [*messages] if messages else [{"role": "user", "content": str(prompt)}]
        if self._alone or not ask.chat_template:
            texts = [response] if self._alone else [_plain(turns), response]
            row = dict(ask(*texts, verbose=False))
            if len(row["input_ids"]) > most:
                self._told_of_cut()
                row = _cut_texts(ask, texts, most)
            return row
        text = self._in_template([*turns, {"role": "assistant", "content": response}])
        tokens = list(ask(text, add_special_tokens=False, verbose=False)["input_ids"])
        if len(tokens) > most:
            self._told_of_cut()
            start = tokens[:1] if tokens[0] == ask.bos_token_id else []
            tokens = start + tokens[len(tokens) - most + len(start) :]
        return {"input_ids": tokens}

    def _in_template(self, turns: list[dict[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception as error:  # a template may raise what it likes
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{self.setting}: its chat template refuses: {reason}") from None

    def _check_template(self) -> None:
        """Refuse a chat template that leaves out what is to be scored."""
        asked, answered = "zqask", "zqsay"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        text = self._in_template(turns)
        for role, mark in (("user", asked), ("assistant", answered)):
            if mark not in text:
                raise UserError(
                    f"{self.setting}: the chat template of {self.source} drops or changes the "
                    f"message of the role {role}"
                )

    def _told_of_cut(self) -> None:
        self.cut += 1
        if self.cut in (1, 10, 100, 1000, 10_000):
            texts = "text was" if self.cut == 1 else "texts were"
            sys.stderr.write(
                f"pyfast: warning: {self.setting}: {self.cut} {texts} longer than the "
                f"{self._most} tokens that {self.source} reads, and cut\n"
            )

    def _score(self, rows: list[dict[str, list[int]]]) -> list[float]:
        import torch

        names = [name for name in self.tokenizer.model_input_names if name in rows[0]]
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.model.config.get_text_config().pad_token_id or 0}
        batch = {
            name: torch.tensor(
                [row[name] + [fill.get(name, 0)] * (longest - len(row[name])) for row in rows]
            ).to(self.device)
            for name in names
        }
        mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
        batch["attention_mask"] = torch.tensor(mask, device=self.device)
        with torch.inference_mode():
            logits = self.model(**batch).logits.float()
        if self._share == "softmax":
            logits = logits.softmax(-1)
        elif self._share == "sigmoid":
            logits = logits.sigmoid()
        return logits[:, self._column].tolist()  # type: ignore[no-any-return]

    def _may_pad(self) -> bool:
        """Tell whether texts of several lengths can be scored together: it is tried."""
        if self.model.config.get_text_config().pad_token_id is None:
            return False  # a decoder does not know then where a text ends
        rows = [self._tokens("a", "b" + " a b" * n) for n in (0, 6)]
        together = self._score(rows)
        apart = [self._score([row])[0] for row in rows]
        size = max(map(abs, apart)) or 1.0
        return all(abs(a - b) <= _CLOSE * size for a, b in zip(together, apart, strict=True))


def is_model(spec: str) -> bool:
    """Tell whether a reward's name is that of a reward model."""
    return spec.startswith(SCHEMES)


def _column(config: Any, label: str, setting: str) -> tuple[int, str]:
    """Return which logit is the score, and what is done to it."""
    labels = {int(index): str(name) for index, name in config.id2label.items()}
    count = config.num_labels
    named = ", ".join(labels[i] for i in sorted(labels))
    if label == "":
        if count != 1:
            raise UserError(
                f"{setting}: the model has {count} labels; expected #LABEL behind its name, one "
                f"of {named}"
            )
        return 0, "logit"
    found = [i for i, name in labels.items() if name == label]
    if not found and label.isascii() and label.isdigit() and int(label) < count:
        found = [int(label)]
    if len(found) != 1:
        raise UserError(f"{setting}: expected one of the labels {named}, got {label!r}")
    kind = config.problem_type
    if count == 1 or kind == "regression":
        return found[0], "logit"
    return found[0], "sigmoid" if kind == "multi_label_classification" else "softmax"


def _most(model: Any, tokenizer: Any) -> int:
    """Return the most tokens that a model reads."""
    settings = model.config.get_text_config()
    limits = [tokenizer.model_max_length, getattr(settings, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None):
            limits.append(module.num_embeddings - module.padding_idx - 1)  # as RoBERTa counts
    return min(limit for limit in [*limits, 10**9] if isinstance(limit, int) and limit > 0)


def _plain(turns: list[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in turns)


def _cut_texts(tokenizer: Any, texts: list[str], most: int) -> dict[str, list[int]]:
    """Return the tokens of texts without the prompt's first, or else the response's last."""
    side = tokenizer.truncation_side
    over = len(tokenizer(*texts, verbose=False)["input_ids"]) - most
    first = len(tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"])
    whole = len(texts) == 2 and over < first  # the response is
    try:
        tokenizer.truncation_side = "left" if whole else "right"
        if not whole and len(texts) == 2:
            texts = ["", texts[1]]
        how = "only_first" if whole or len(texts) == 1 else "only_second"
        return dict(tokenizer(*texts, truncation=how, max_length=most))
    finally:
        tokenizer.truncation_side = side
