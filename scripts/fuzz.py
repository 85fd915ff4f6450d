"""Fuzzing of all readers of files and of endpoint replies.

    PYTHONPATH=src python scripts/fuzz.py --seconds 300
    PYTHONPATH=src python scripts/fuzz.py --seconds 60 --only log --seed 7

Each case must return a result or raise an error of `astra_rl.errors`, without other exceptions and
without hanging. Violations are printed with the data to reproduce them, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from astra_rl.config.estimate import estimate
from astra_rl.config.loading import load_config, load_moderator
from astra_rl.config.prompts import read_openings
from astra_rl.config.resolve import check_training, resolve
from astra_rl.config.schema import PromptsConfig
from astra_rl.core.text import Utterance
from astra_rl.errors import AstraError
from astra_rl.evaluation.judges.labels import read_labels
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.infra.jsonio import parse_json
from astra_rl.moderators import (
    LlamaGuardModerator,
    LLMJudgeModerator,
    OpenAIModerationModerator,
)
from astra_rl.moderators.llm_judge import read_verdict
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.resume import check_same_run, kept_metrics
from astra_rl.targets import Budget, Ledger, OpenAITarget, Prices, ReplyCache
from astra_rl.targets.accounts import describe_spent
from astra_rl.targets.budget import Usage
from astra_rl.targets.call_errors import CallError, error_of_status
from astra_rl.targets.error_bodies import error_of_response, message_of
from astra_rl.targets.http_api import HTTPTarget
from astra_rl.targets.http_client import json_of
from astra_rl.targets.openai_client import Reply
from astra_rl.targets.remote import Chat
from astra_rl.training.states import load_state, save_state

SECONDS_PER_CASE = 20
"""A case that takes longer hangs."""

TOKENS = [
    *(b"", b"\x00", b"\xff", b"\xed\xa0\x80", "\u202e".encode(), "\u2028".encode(), b"\r", b"\n"),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"',
        b"'",
        b"-",
        b"#",
        b"&a",
        b"*a",
        b"!!python/name:os",
    ),
    *(b"null", b"true", b"nan", b".inf", b"-1", b"1e999", b"1e-400", b"9" * 400, b"0x7fffffffffff"),
    *(
        b"2026-13-45",
        b"!!timestamp x",
        b"!!int ",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"1:60:00",
        b"<<: *a",
        b"\\ud800",
        b"\\u0000",
        b"[" * 300,
        b"{a: " * 100,
    ),
    *(b"2026-13-45", b"!!timestamp x", b"!!int ", b"[" * 3000, b'{"a":' * 3000),
    *(b"../../etc/passwd", b"hub:x/y", b"bundled:", b"package.module:Class", b"=1+1", b"\t"),
]
CONFIG = """\
title: a run
attacker: {model: bundled:smollm2-135m, max_new_tokens: 8, lora: {rank: 4}}
target: {model: bundled:smollm2-135m}
moderator: {type: max, of: [{type: profanity}, {type: keyword, options: {patterns: [a, b]}}]}
prompts: {file: prompts.jsonl, train: 4, columns: {prompt: prompt}}
reward:
  sum:
    - several_targets: {others: [{type: astra_rl.testing:echo, options: {prices: {input: 1}}}]}
    - {gibberish: {moderator: {type: keyword, options: {patterns: [a]}}}, weight: -0.1}
    - {attack_nll: {}, weight: -0.1}
    - self_bleu
environment: {type: tree, tree_width: 2, tree_depth: 2}
algorithm: {type: ppo, options: {kl_in_reward: 0.01}}
training: {steps: 3, lr: 0.001, optimizer: adamw, save_every: 1}
evaluation: {threshold: 0.5, judge: {type: profanity}}
seed: 0
"""
ROWS = {
    "jsonl": "".join(
        f'{{"prompt": "{text}"}}\n'
        for text in ("hello there", "what is new", "good evening", "how is work", "nice weather")
    ),
    "json": '[{"prompt": "hello there"}, {"prompt": "good evening", "tags": ["a"]}]',
    "csv": 'prompt,id\nhello there,a\n"what, is",b\ngood evening,c\n',
    "tsv": "prompt\tid\nhello there\ta\nwhat is\tb\n",
    "txt": "hello there\nwhat is new\ngood evening\n",
    "parquet": "PAR1\x15\x04PAR1",
}
LABELS = {
    "csv": "text,label\nI cannot help,0\nhere it is,1\n",
    "jsonl": '{"text": "I cannot", "label": 0}\n{"text": "sure", "label": 1}\n',
}
Draw = random.Random


def damaged(data: bytes, draw: Draw) -> bytes:
    """Return the data with a few mutated bits, spans or tokens."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        start = draw.randrange(len(out) + 1)
        stop = min(len(out), start + draw.choice((0, 1, 1, 4, 30)))
        kind = draw.randrange(6)
        if kind == 0 and out:
            out[min(start, len(out) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del out[start:stop]
        elif kind == 2:
            out[start:stop] = draw.choice(TOKENS)
        elif kind == 3:
            out[start:start] = out[start:stop] * draw.choice((1, 2, 50))
        elif kind == 4:
            out[start:start] = bytes(draw.randrange(256) for _ in range(draw.randrange(5)))
        elif draw.random() < 0.3:
            del out[start:]
    return bytes(out)


def fuzz_config(folder: Path, draw: Draw) -> None:
    (folder / "prompts.jsonl").write_text(ROWS["jsonl"])
    path = folder / "config.yaml"
    text = CONFIG.replace("prompts.jsonl", str(folder / "prompts.jsonl"))
    path.write_bytes(damaged(text.encode(), draw))
    name = draw.choice(("seed", "training.lr", "moderator", "a.b.c", "", "target.model"))
    value = damaged(draw.choice(TOKENS), draw).decode("utf-8", "surrogateescape")
    overrides = [f"{name}={value}"] if draw.random() < 0.3 else []
    config = load_config(path, overrides)
    config.to_yaml()
    plan = resolve(config)
    check_training(plan)
    estimate(plan)


def fuzz_moderator(folder: Path, draw: Draw) -> None:
    path = folder / "judge.yaml"
    path.write_bytes(damaged(b"moderator: {type: keyword, options: {patterns: [a]}}\n", draw))
    load_moderator(str(path))


def fuzz_prompts(folder: Path, draw: Draw) -> None:
    kind = draw.choice(list(ROWS))
    path = folder / f"prompts.{kind}"
    path.write_bytes(damaged(ROWS[kind].encode(), draw))
    read_openings(PromptsConfig(file=str(path)), seed=0)


def fuzz_labels(folder: Path, draw: Draw) -> None:
    kind = draw.choice(list(LABELS))
    path = folder / f"labels.{kind}"
    path.write_bytes(damaged(LABELS[kind].encode(), draw))
    read_labels(path)


def fuzz_judge(folder: Path, draw: Draw) -> None:
    """Replies of a judge; the result is a score in [0, 1] or a missing score."""

    def reply(chats: list[object]) -> list[str]:
        data = damaged(draw.choice((b"think\nVERDICT abc: 7\n", b"unsafe\nS1,S2", b"safe")), draw)
        return [data.decode("utf-8", draw.choice(("replace", "surrogateescape"))) for _ in chats]

    verdict = read_verdict(reply([0])[0], "abc", (0, 10))
    for judge in (LLMJudgeModerator(reply), LlamaGuardModerator(complete=reply)):
        for score in (*judge.moderate([reply([0])[0], "x"]), verdict):
            if not (score != score or 0 <= score <= 1):
                raise AssertionError(f"{type(judge).__name__} scored {score}")


def fuzz_state(folder: Path, draw: Draw) -> None:
    state = {"weights": torch.arange(12.0), "memory": ["a", 1, None, {"b": (1, 2.5)}]}
    save_state(folder / "states", 1, {"step": 1})
    place = save_state(folder / "states", 2, state)
    path = place / draw.choice(("state.json", "tensors.safetensors"))
    path.write_bytes(damaged(path.read_bytes(), draw))
    found = load_state(folder / "states")
    if found is None or (found[0] == 2 and not torch.equal(found[1]["weights"], state["weights"])):
        raise AssertionError("a damaged state was taken for a whole one")


def attempt(number: int) -> Attempt:
    turn = Turn(attack=f"ask {number}", response="answer", scores={"j": JudgeScore(value=0.5)})
    return Attempt.make(
        run="r", opening=f"o {number}", turns=[turn], judge="j", target="t", attacker="a"
    )


def fuzz_log(folder: Path, draw: Draw) -> None:
    path = folder / "attempts.jsonl"
    with AttemptLog(path, write=True) as log:
        for number in range(5):
            log.append(attempt(number))
    index = path.with_name(path.name + ".index")
    for each in draw.choice(([path], [index], [path, index])):
        each.write_bytes(damaged(each.read_bytes(), draw))
    if draw.random() < 0.3:
        index.unlink()
    with AttemptLog(path) as log:
        list(log)
        list(log.rows(order="score"))
    with AttemptLog(path, write=True) as log:
        log.append(attempt(99))
    with AttemptLog(path) as log:
        if attempt(99).id not in log:
            raise AssertionError("what was appended to a damaged log is not found")


def fuzz_run(folder: Path, draw: Draw) -> None:
    """Other files that are read by a resume."""
    (folder / "prompts.jsonl").write_text(ROWS["jsonl"])
    (folder / "good.yaml").write_text(CONFIG)
    config = load_config(folder / "good.yaml")
    run = RunFolder(folder / "run")
    for path, data in (
        (run.config, config.to_yaml().encode()),
        (run.manifest, b'{"schema_version": 1, "prompts": [{"name": "a", "sha256": "1"}]}'),
        (run.metrics, b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'),
    ):
        path.write_bytes(damaged(data, draw))
    kept_metrics(run, 1)
    for check in (run.read_manifest, lambda: check_same_run(config.to_yaml(), run)):
        with contextlib.suppress(AstraError):
            check()


COMPLETION = b"""{"choices": [{"message": {"content": "hi", "refusal": null}, "text": "hi",
"finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}"""
MODERATION = b'{"results": [{"category_scores": {"hate": 0.5, "violence": null}}]}'
FAILURE = b'{"error": {"message": "too fast", "code": "rate_limited"}}'


def fuzz_reply(folder: Path, draw: Draw) -> None:
    """Replies of an endpoint; the result is a text, scores, or a failed call."""
    url, chat = "http://127.0.0.1:9/v1", Chat([{"role": "user", "content": "hello"}])
    moderation = OpenAIModerationModerator(base_url=url, api_key="k")
    http = HTTPTarget(url, {"q": "{message}"}, "choices[0].message.content")
    for read in (
        lambda: OpenAITarget("m", base_url=url)._read(
            chat, Reply(200, {}, damaged(COMPLETION, draw))
        ),
        lambda: OpenAITarget("m", base_url=url, api="completions")._read(
            chat, Reply(200, {}, damaged(COMPLETION, draw))
        ),
        lambda: http._read(chat, 200, {}, damaged(COMPLETION, draw)),
    ):
        with contextlib.suppress(CallError):
            answer = read()
            if not (isinstance(answer.value, str) and answer.usage.input >= 0):
                raise AssertionError(f"a reply was taken for {answer}")
            Ledger(Budget(max_tokens=10**9)).charge("m", answer.usage, Prices(1, 1))
    with contextlib.suppress(CallError):
        for each in moderation._read(json_of(damaged(MODERATION, draw)), 1):
            score = moderation._score(parse_json(each))
            if not (score.reason or 0 <= score <= 1):
                raise AssertionError(f"a moderation was taken for {score}")
    headers = {name: damaged(b"120", draw).decode("latin-1") for name in ("retry-after", "x")}
    error = error_of_status(draw.choice((400, 429, 500, 777)), headers, "")
    if not (error.retry_after is None or 0 <= error.retry_after < float("inf")):
        raise AssertionError(f"an endpoint asked to wait {error.retry_after} s")
    failure = damaged(FAILURE, draw)
    error = error_of_response(failure).as_call_error(draw.choice((200, 400, 429, 500)), headers)
    if not (error.retry_after is None or 0 <= error.retry_after < float("inf")):
        raise AssertionError(f"an endpoint asked to wait {error.retry_after} s")
    if not isinstance(message_of(failure), str):
        raise AssertionError("what an error says is no text")


def fuzz_spent(folder: Path, draw: Draw) -> None:
    """Ledger files and reply caches."""
    with Ledger(path=folder / "ledger.json").charging() as ledger:
        ledger.settle(ledger.admit("m"), Usage(7, 3), Prices(1, 1))
    cache = ReplyCache(folder / "replies.sqlite")
    for number in range(50):
        cache.put(f"{number}", Utterance("a reply " * 20, finish_reason="stop"))
    cache.close()
    for name in ("ledger.json", "replies.sqlite"):
        path = folder / name
        path.write_bytes(damaged(path.read_bytes(), draw))
    with contextlib.suppress(AstraError):
        spent = Ledger.open(folder / "ledger.json", Budget(max_cost=1e9))
        spent.check()
        describe_spent(spent.as_dict())
    cache = ReplyCache(folder / "replies.sqlite")
    try:
        cache.put("new", "text")
        for number in range(50):
            found = cache.get(f"{number}")
            if not (found is None or isinstance(found, str)):
                raise AssertionError(f"a reply came back as {found!r}")
    finally:
        cache.close()


TARGETS: dict[str, Callable[[Path, Draw], None]] = {
    "config": fuzz_config,
    "moderator": fuzz_moderator,
    "prompts": fuzz_prompts,
    "labels": fuzz_labels,
    "judge": fuzz_judge,
    "state": fuzz_state,
    "log": fuzz_log,
    "run": fuzz_run,
    "reply": fuzz_reply,
    "spent": fuzz_spent,
}


class HangError(BaseException):
    """A case took too long; a BaseException, so that no `except Exception` catches it."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise HangError(f"no end within {SECONDS_PER_CASE} s")


def try_case(name: str, seed: int, folder: Path) -> tuple[str, BaseException | None]:
    """Run one case; returns the outcome, and the violation if there is one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        TARGETS[name](folder, Draw(f"{name} {seed}"))
    except AstraError as error:
        return type(error).__name__, None
    except (Exception, HangError) as error:
        return "broken", error
    return "read", None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", choices=list(TARGETS), action="append")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    options = parser.parse_args()
    logging.getLogger("astra_rl").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _hang)
    names = options.only or list(TARGETS)
    counts: Counter[tuple[str, str]] = Counter()
    broken: dict[str, str] = {}
    end = time.monotonic() + options.seconds
    seed = options.seed
    with tempfile.TemporaryDirectory() as temporary:
        while time.monotonic() < end:
            for name in names:
                signal.alarm(SECONDS_PER_CASE)
                outcome, error = try_case(name, seed, Path(temporary) / "case")
                signal.alarm(0)
                counts[name, outcome] += 1
                if error is not None:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    key = f"{name}: {type(error).__name__} in {place.filename}:{place.lineno}"
                    if key not in broken:
                        broken[key] = f"--only {name} --seed {seed}"
                        print(f"BROKEN {key}\n  {broken[key]}\n  {str(error)[:300]!r}", flush=True)
                        traceback.print_exception(error, limit=-6)
            seed += 1
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:10} {outcome:22} {count}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
