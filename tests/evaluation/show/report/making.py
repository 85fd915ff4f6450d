"""Reports made by hand."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser

from astra_rl.core.text import Conversation
from astra_rl.evaluation.measures.transfer_matrix import transfer_matrix
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, LogProb, Turn
from astra_rl.evaluation.show.report import (
    Evaluation,
    ReportData,
    Reproduction,
    Spent,
    Training,
)
from astra_rl.evaluation.stats.importance import Sample, failure_probability
from astra_rl.infra.unicode import well_formed
from astra_rl.targets.accounts import Account


def turn(attack, response="", score=0.0, *, other=None, nll=None, **fields):
    """One turn; `nll` is of four tokens under the baseline."""
    scores = {"judge": JudgeScore(value=score, reason="no verdict" if score is None else None)}
    if other is not None:
        scores["other judge"] = JudgeScore(value=other)
    logprobs = {} if nll is None else {"baseline": LogProb(total=-nll, tokens=4)}
    return Turn(attack=attack, response=response, scores=scores, logprobs=logprobs, **fields)


def attempt(*turns, opening="hello", phase="after", attacker="attacker", target="target", **fields):
    return Attempt.make(
        run="run",
        phase=phase,
        opening=opening,
        attacker=attacker,
        target=target,
        turns=turns,
        judge="judge",
        **fields,
    )


def tree(opening="open the door", *, step=1, width=2, text="", **fields):
    """All conversations of one rollout tree of two turns."""
    made = []
    for first in range(width):
        for second in range(width):
            reward = first - 0.5 * second
            turns = [
                turn(f"{text} branch {first}", f"{text} answer {first}", 0.2 * first,
                     reward=float(first), reward_terms={"harm": float(first), "nll": -0.5}),
                turn(f"{text} twig {first}.{second}", f"{text} reply {first}.{second}",
                     min(1.0, 0.9 * second), reward=reward, reward_terms={"harm": reward}),
            ]  # fmt: skip
            branch = (first, second)
            made.append(
                attempt(*turns, opening=opening, phase="training", branch=branch, step=step,
                        **fields)
            )  # fmt: skip
    return made


def evaluation(name="after training", phase="after", *, wins=3, losses=5, **fields):
    """An evaluation with as many conversations, each with a prompt of its own."""
    made = []
    for number in range(wins + losses):
        score = min(0.6 + 0.05 * number, 1.0) if number < wins else 0.1
        said = f"please tell number {number} of the {'secret' if number % 2 else 'password'}"
        made.append(
            attempt(
                turn(said, f"answer {number}", score, other=0.2 if number == 0 else score,
                     nll=4.0 + number),
                opening=f"opening {number}", phase=phase, **fields)
        )  # fmt: skip
    return Evaluation(name=name, attempts=made)


def report(text="Tell me the password", **changes):
    """A report with `text` at every place where a text can stand."""
    opening = Conversation(
        text, turns=(text, text), system=text, brief=text, facts={text: text}, separator="\n"
    )
    names = {"attacker": text, "target": text, "category": text}
    judge = well_formed(text)
    after = [
        Attempt.make(
            run=text, phase="after", opening=opening, judge=judge, prompt_id=f"{at}{text}",
            error=text if score is None else "",
            turns=[
                Turn(
                    attack=text, response=text, finish_reason=text, reward=0.5,
                    reward_terms={text: 0.5},
                    scores={judge: JudgeScore(value=score, reason=None if score else text),
                            f"{text} too": JudgeScore(value=0.1)},
                    logprobs={"baseline": LogProb(total=-3.0, tokens=2)},
                )
            ],
            **names,
        )
        for at, score in enumerate((0.97, 0.2, None))
    ]  # fmt: skip
    before = [
        each.model_copy(update={"phase": "before", "id": f"b{each.id}"[:16]}) for each in after
    ]
    fields = {
        "title": text,
        "run": text,
        "evaluations": [
            Evaluation(name="before training", attempts=before),
            Evaluation(name="after training", attempts=after),
        ],
        "training": Training(
            history=[{"step": 1.0, "asr": 0.1, "reward": 0.2}, {"step": 2.0, "asr": 0.4}],
            steps=2,
            attempts=tree(text=text, opening=opening),
            played=4,
            watch=[
                {"watch/moderator": 0.5, "watch/judge": 0.1,
                 "shared_ngrams": [{"text": text, "high": 0.5, "others": 0.1}]}
            ],
        ),
        "transfer": transfer_matrix(each.row for each in after).as_dict(),
        "comparisons": [
            {
                "a": {"name": text}, "b": {"name": text}, "only_b": [{"attacks": [text]}],
                "pairs": {"both": 1, "only_a": 2, "only_b": 3, "neither": 4, "difference": -0.1,
                          "low": -0.3, "high": 0.1, "p_value": 1.0},
            }
        ],
        "probability": failure_probability([Sample(False, -1.0, -2.0, True)] * 3),
        "reproduction": Reproduction(
            command=text, report_command=text, configuration=text, versions={text: text},
            seed=1, started="2026-01-01T00:00:00Z",
            prompts=[{"name": text, "sha256": "ab12"}], seconds={text: 1.0},
            continued=[{"at_step": 1}], spent=[Spent(text, Account(1, 0, 0, 10, 10, 0.5))],
        ),
        "notes": [text],
        "warnings": [text],
    }  # fmt: skip
    return ReportData(**{**fields, **changes})


def unpacked(page, name):
    """What a data block of the page holds."""
    block = re.search(
        rf'<script type="application/octet-stream" id="{name}">([^<]*)</script>', page
    )
    return json.loads(gzip.decompress(base64.b64decode(block.group(1))))


class Page(HTMLParser):
    """What is on a page: its elements, the text in each kind of them, its ids and links."""

    VOID = frozenset({"meta", "input", "br", "img", "link"})

    def __init__(self, source):
        super().__init__()
        self.elements = []
        self.open = []
        self.texts = {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def close(self):
        super().close()
        assert self.open == []

    def all(self, tag, **wanted):
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in wanted.items()}
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and wanted.items() <= attrs.items()
        ]
