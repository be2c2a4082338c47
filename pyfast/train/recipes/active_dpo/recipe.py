"""ActiveDPO: DPO on the pairs whose preference the policy is least certain of, labelled in rounds.

The numbers in the comments are the lines of the paper's algorithm. A round happens in
`ActiveDpo._make_round`; the loop takes the gradient steps (line 11).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyfast._files import write_folder
from pyfast.train.config import from_file
from pyfast.train.data import inputs as prompt_inputs
from pyfast.train.data import order
from pyfast.train.data.group import Group
from pyfast.train.errors import UserError
from pyfast.train.evaluation.answering import AnsweringRecipe
from pyfast.train.recipe import Scored, TrainingGroup
from pyfast.train.recipes.active_dpo import acquisition, labels, oracle, rounds
from pyfast.train.recipes.active_dpo.settings import ActiveDpoSettings
from pyfast.train.runs import kept
from pyfast.train.runs.layout import LABELS
from pyfast.train.scoring import rewards

if TYPE_CHECKING:
    from torch import Tensor

    from pyfast.train.context import Context


@dataclass(frozen=True)
class Inputs(prompt_inputs.Inputs):
    """What a run reads, its oracle as ``oracle(seed, folder)``, and what that one scores by."""

    oracle: Callable[[int, Path], oracle.Oracle]
    scorer: rewards.Reward

    @property
    def rewards(self) -> dict[str, rewards.Reward]:
        """The scorers by name, each once."""
        found = super().rewards
        known = any(reward is self.scorer for reward in found.values())
        return found if known else {**found, "oracle": self.scorer}


class ActiveDpo(AnsweringRecipe):
    """The pairs that the policy is least certain of, labelled in rounds, by DPO (ActiveDPO).

    In each round, sample responses to prompts, choose pairs of them by their gradients (or by a
    baseline), ask an oracle which response is better, and train on its labels. Held-out prompts
    are answered before, and after each round.
    """

    Settings = ActiveDpoSettings
    examples = (
        "  pyfast train active-dpo --demo\n"
        "  pyfast train active-dpo --demo --method random --seed 1 --out runs/random-1\n"
        "  pyfast train active-dpo --prompts prompts.jsonl --heldout heldout.jsonl \\\n"
        "      --model ./my-model --oracle file --rounds 3 --labels 20 --out runs/mine"
    )

    def __init__(self, settings: ActiveDpoSettings, inputs: Inputs, ctx: Context) -> None:
        super().__init__(settings, inputs, ctx)
        prompt_inputs.check_lengths(inputs, ctx, settings.sampling.max_new_tokens)
        self.oracle = inputs.oracle(ctx.seed("oracle"), ctx.folder / "questions")
        self._initial: dict[str, Tensor] = {}
        if settings.active.start == "sft":
            self._initial = {name: p.detach().clone() for name, p in ctx.policy.trainable().items()}
        self._rounds: dict[int, dict[str, Any]] = {}
        self.encoder: Any = None
        if settings.active.method == "apo":
            from pyfast.train.scoring.encoder import SentenceEncoder

            self.encoder = SentenceEncoder(settings.scoring.encoder, ctx.policy.device)

    @staticmethod
    def read(settings: ActiveDpoSettings) -> Inputs:
        """Read prompts, find the reward and the oracle, and see whether there can be labels."""
        found = prompt_inputs.read_inputs(settings)
        scorer = oracle.scorer_of(settings.oracle, found.reward)
        asks = oracle.load(settings.oracle, scorer)
        active, n = settings.active, settings.sampling.responses
        prompts = min(active.prompts_per_round or len(found.prompts), len(found.prompts))
        one_each = active.method == "aplp" and active.per_prompt == "one"
        pairs = prompts if one_each else prompts * n * (n - 1) // 2
        wanted = active.labels * (active.rounds if active.method == "apo" else 1)
        if wanted > pairs:
            raise UserError(
                f"active.labels: {prompts} prompts with {n} responses make {pairs} pairs to choose "
                f"from, expected at least {wanted}"
            )
        return Inputs(**vars(found), oracle=asks, scorer=scorer)

    @staticmethod
    def ends(settings: ActiveDpoSettings) -> list[int]:
        """Return after how many steps each round ends."""
        optim, active = settings.optimisation, settings.active
        sizes = [
            active.labels * (number if active.train_on == "all" else 1)
            for number in range(1, active.rounds + 1)
        ]
        steps = [math.ceil(optim.epochs * size / optim.groups_per_step) for size in sizes]
        return list(accumulate(steps))

    @staticmethod
    def steps(settings: ActiveDpoSettings, inputs: Inputs) -> int:
        """Return the steps of all rounds."""
        return ActiveDpo.ends(settings)[-1]

    @staticmethod
    def label(settings: ActiveDpoSettings) -> str:
        """Return the method."""
        return settings.active.method

    @staticmethod
    def verify(settings: ActiveDpoSettings, out: Path) -> None:
        """Refuse labels that are not those that the rounds so far have learnt from."""
        rounds_made = {
            number: out / "kept" / f"round-{number}" / "labelled.json"
            for number in range(1, settings.active.rounds + 1)
        }
        marks = {
            number: kept.read(path)["labels"]
            for number, path in rounds_made.items()
            if path.exists()
        }
        labels.verify(out / LABELS, marks)

    def schedule(self, step: int) -> tuple[int, int]:
        """Return the steps of a step's round."""
        ends = [0, *self.ends(self.settings)]
        number = int(np.searchsorted(ends, step, side="right"))
        return ends[number - 1], ends[number]

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the encoder's, where there is one."""
        from pyfast.train.policy import fingerprint

        if self.encoder is None:
            return {}
        return {"encoder": fingerprint.of(self.encoder.model, self.encoder.tokenizer)}

    @classmethod
    def summary(cls, settings: ActiveDpoSettings, inputs: Inputs, out: Path) -> dict[str, Any]:
        """Compare the answers before, after each round, and after."""
        from pyfast.train.recipes.active_dpo import report

        lines = report.curves(settings, out, cls.ends(settings))
        report.write_curves(out, lines)
        asked = settings.oracle.oracle_reward or settings.scoring.reward
        judged = settings.evaluation.reward or settings.scoring.reward
        same = asked == judged and settings.oracle.oracle in oracle.RULES
        found = super().summary(settings, inputs, out)
        found["metrics"] |= report.metrics_of(lines)
        return found | report.totals(lines, settings.evaluation.confidence, same)

    @classmethod
    def plots(cls, out: Path, **options: Any) -> list[Path]:
        """Draw the curves over the number of labels."""
        from pyfast.train.recipes.active_dpo import plots, report

        settings = from_file(cls.Settings, out / "config.json")
        lines = report.curves(settings, out, cls.ends(settings))
        return plots.plot(out, lines, f"{settings.active.method}, seed {settings.run.seed}")

    @staticmethod
    def table(summary: dict[str, Any]) -> str:
        """Return a table with a line a round."""
        from pyfast.train.recipes.active_dpo import report

        title = f"active-dpo · {summary['label']} · seed {summary['seed']}"
        return report.table(f"{title} · {summary['steps']} steps", summary)

    def groups(self, step: int) -> list[TrainingGroup]:
        """Start a round where one is due; return labelled pairs of it."""
        start, end = self.schedule(step)
        number = self.ends(self.settings).index(end) + 1
        active = self.settings.active
        first = 1 if active.train_on == "all" else number
        pairs = [pair for t in range(first, number + 1) for pair in self._round(t)["pairs"]]
        if step == start:
            if active.keep_adapters and number > 1:
                policy = self.ctx.policy
                folder = self._folder(number - 1) / policy.saves
                self.ctx.once(lambda: write_folder(folder, policy.save))
            self.ctx.once(lambda: self._clear(number))
            for name, initial in self._initial.items():
                self.ctx.policy.trainable()[name].data.copy_(initial)
        per_step = self.settings.optimisation.groups_per_step
        seed = self.ctx.seed("order", number)
        chosen = order.of_step(len(pairs), per_step, seed, step - start)
        return [self._group(pairs[index], number, step) for _, index in chosen]

    def _group(self, pair: dict[str, Any], number: int, step: int) -> TrainingGroup:
        """Return a labelled pair, the chosen response first."""
        import torch

        def line(x: Scored | None) -> str:
            policy = x.policy_logps.tolist() if x else None
            meta = {"step": step + 1, "round": number}
            return Group(
                pair["prompt"], pair["texts"], None, None, pair["token_ids"], policy,
                pair["ref_logps"], 0, [1], meta,
            ).to_json()  # fmt: skip

        return TrainingGroup(
            pair["prompt_ids"],
            pair["token_ids"],
            ref_logps=torch.tensor(pair["ref_logps"]),
            measured={"round": number},
            line=line,
        )

    def loss(self, x: Scored, step: int, metrics: dict[str, Tensor]) -> Tensor:
        """Prefer the better response (ActiveDPO, equation 2)."""
        from pyfast import losses  # loads torch, which choosing does without

        beta = self.settings.loss.beta
        return losses.dpo(x.policy_logps, x.ref_logps, beta=beta, metrics=metrics)

    def _round(self, number: int) -> dict[str, Any]:
        """Return a round's labelled pairs, and what was measured; made once."""
        if number not in self._rounds:
            made = self.ctx.remember(f"round-{number}/labelled", lambda: self._make_round(number))
            self._rounds[number] = made
        return self._rounds[number]

    def _make_round(self, number: int) -> dict[str, Any]:
        """Sample, choose and label, with the policy as the round before has left it."""
        wanted = self.settings.active.labels
        pool = self._pool(number)  # 3: D_t
        asked = {key for t in range(1, number) for key in self._round(t)["asked"]}
        is_new = [pool.question(pair).key not in asked for pair in pool.pairs.tolist()]
        left = pool.pairs[np.array(is_new, dtype=bool)]
        criterion = self._criterion(pool, number)
        chosen: list[list[int]] = []  # 4: D_t^s
        noted: list[dict[str, Any]] = []
        keys: list[str] = []
        for attempt in count(1):  # again, where questions were skipped
            missing = wanted - len(chosen)
            if missing == 0:
                break
            if criterion.available(left) < missing:
                why = rounds.why_too_few(pool, wanted, len(left), len(keys) - len(chosen))
                raise UserError(f"round {number}: {why}")
            seed = self.ctx.seed("select", number, attempt)
            picks = criterion.choose(left, missing, seed)  # 5-9
            batch = f"round-{number}" if attempt == 1 else f"round-{number}-{attempt}"
            show, path = self.ctx.seed("show", number, attempt), self.ctx.folder / LABELS
            self.ctx.agree(f"the pairs of {batch}", left[picks].tolist())
            questions = (left[picks], self.oracle, path, batch, show)
            answers = self.ctx.once(partial(rounds.ask, pool, *questions))  # 10
            better = [pair for pair, _ in answers if pair is not None]
            keys += [pool.question(pair).key for pair in left[picks].tolist()]
            chosen += better
            noted += [notes for pair, notes in answers if pair is not None]
            left = np.delete(left, picks, axis=0)
            criterion.learn(np.array(better, dtype=np.int64).reshape(-1, 2))
        criterion.keep()
        pairs = self.ctx.each(chosen, lambda pair: self._labelled(pool, pair))
        report = {
            "round": number,
            "labels": number * wanted,
            "skipped": len(keys) - len(chosen),
            "ties": sum("tie" in notes for notes in noted),
            "agreement": float(np.mean([pair.pop("agrees") for pair in pairs])),
            **rounds.describe(pool, np.array(chosen)),
            **criterion.report,
        }
        mark = self.ctx.once(lambda: labels.mark(self.ctx.folder / LABELS))
        return {"pairs": pairs, "asked": keys, "report": report, "labels": mark}

    def _criterion(self, pool: rounds.Pool, number: int) -> acquisition.Criterion:
        before = [pair for t in range(1, number) for pair in self._round(t)["pairs"]]
        turn = acquisition.Turn(
            number,
            pool,
            self._folder(number),
            self._folder(number - 1) if number > 1 else None,
            [(pair["prompt_ids"], tokens) for pair in before for tokens in pair["token_ids"]],
        )
        kind = acquisition.CRITERIA[self.settings.active.method]
        return kind(self.ctx, self.settings, turn, self.encoder)

    def _pool(self, number: int) -> rounds.Pool:
        """Return the pool of a round: that of the first one for APO, which regenerates nothing."""
        number = 1 if self.settings.active.method == "apo" else number
        prompts = self.inputs.prompts
        count = self.settings.active.prompts_per_round
        drawn = rounds.draw(len(prompts), count, self.ctx.seed("prompts", number))
        return rounds.make_pool(self.ctx, prompts, drawn, self.settings.sampling, f"round-{number}")

    def _labelled(self, pool: rounds.Pool, pair: list[int]) -> dict[str, Any]:
        """Return what training needs of a pair, and whether the policy agrees with its label."""
        import torch

        prompt, tokens = pool.owners[pair[0]], [pool.tokens[row] for row in pair]
        ids = pool.prompt_ids[prompt]
        with torch.no_grad():
            policy = self.ctx.policy.logps(ids, tokens).cpu()
        reference = self.ctx.policy.logps(ids, tokens, reference=True).cpu()
        chosen, rejected = (policy.double() - reference.double()).tolist()
        return {
            "prompt": str(pool.prompts[prompt]),
            "texts": [pool.texts[row] for row in pair],
            "prompt_ids": ids,
            "token_ids": tokens,
            "ref_logps": reference.tolist(),
            "agrees": 0.5 if chosen == rejected else float(chosen > rejected),
        }

    def _folder(self, number: int) -> Path:
        """Return where a round's files are."""
        return self.ctx.folder / "kept" / f"round-{number}"

    def _clear(self, number: int) -> None:
        """Remove what later rounds do not need; the last two checkpoints are of the last two."""
        if not self.settings.active.keep_sketches:
            shutil.rmtree(self._folder(number) / "sketches", ignore_errors=True)
        (self._folder(number - 2) / "V.npz").unlink(missing_ok=True)
