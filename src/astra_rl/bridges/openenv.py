"""OpenEnv: conversations with a target as an environment behind a server; extra ``openenv``.

The server owns target, judge and openings. A trainer elsewhere sends messages and gets responses
and rewards::

    uvicorn.run(environment_app(openings, target, "refusal", turns=3), port=8000)

`attack_sessions` and `opening_dataset` are the side of `trl.GRPOTrainer`.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from astra_rl.agents import answer
from astra_rl.bridges.trl import Scorer, scorer_of
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation, Exchange, NoAttack, NoReply, NotAsked
from astra_rl.errors import ConfigurationError, require
from astra_rl.infra.loopback import is_loopback
from astra_rl.methods.prompted_attacker import as_attacker_reads
from astra_rl.rewards.base import RewardPart
from astra_rl.targets.base import Target

try:
    from openenv.core import GenericEnvClient, create_fastapi_app
    from openenv.core.env_server import (
        Action,
        ConcurrencyConfig,
        Environment,
        Observation,
        State,
    )
except ImportError:
    require("openenv", extra="openenv")  # says how to install it
    raise
from pydantic import Field
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

    import datasets

MOST_SESSIONS = 64
"""Default of the largest number of open connections of a server."""
SECONDS_IDLE = 3600.0
"""Default of the seconds after which a server forgets a session that sends nothing."""
TIMEOUT = 600.0
"""Default of the seconds that a client waits for the response and the score of a message."""


class Attack(Action):  # type: ignore[misc]
    """What the attacker does: it sends a message to the target."""

    message: str = Field(description="The message, as a user writes it.")


class Reply(Observation):  # type: ignore[misc]
    """What the attacker sees: the response, and the brief of the conversation.

    ``reward`` is that of the message; None at the start, and where a score is missing. ``done`` is
    true after the last turn, and after a turn that the target did not answer.
    """

    response: str = Field("", description="Response of the target; empty at the start.")
    prompt: str = Field(description="What the attacker reads before its first message.")
    opening: int = Field(description="Number of the opening, from 0.")
    openings: int = Field(description="How many openings there are.")


class AttackEnvironment(Environment):  # type: ignore[misc]
    """A conversation in which an attacker sends messages to a target and is paid for failures.

    Args:
        openings: Conversations to begin, or prompts.
        respond: Returns the response of the target to each conversation.
        score: Scores turns.
        turns: Messages of a conversation.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(
        self,
        openings: Sequence[Conversation],
        respond: Callable[[Sequence[str]], Sequence[str]],
        score: Scorer,
        turns: int = 1,
    ) -> None:
        super().__init__()
        self._openings, self._respond, self._score = openings, respond, score
        self._most, self._turns = turns, 0
        self._opening = 0
        self._conversation: Conversation | None = None
        self._state = State()

    @property
    def state(self) -> State:
        """Id of the episode, and number of messages."""
        return self._state

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        opening: int | None = None,
    ) -> Reply:
        """Begin a conversation.

        Args:
            seed: Seed of the choice of the opening; None draws it.
            episode_id: Id in the state.
            opening: Number of the opening; None chooses one.

        Raises:
            ConfigurationError: There is no such opening.
        """
        if opening is None:
            opening = random.Random(seed).randrange(len(self._openings))
        if not (isinstance(opening, int) and 0 <= opening < len(self._openings)):
            raise ConfigurationError(
                f"opening={opening!r:.40}; give a number from 0 to {len(self._openings) - 1}."
            )
        self._opening, self._turns = opening, 0
        self._conversation = self._openings[opening]
        self._state = State(episode_id=episode_id, step_count=0)
        return self._reply(response="", done=False, reward=None)

    def step(self, action: Attack, timeout_s: float | None = None) -> Reply:
        """Send a message, and score the turn. If that fails, the conversation is over.

        Raises:
            ConfigurationError: No conversation has begun, or it is over.
        """
        context = self._conversation
        if context is None:
            raise ConfigurationError("no conversation has begun, or it is over; call reset().")
        self._conversation = None
        self._turns += 1
        self._state.step_count = self._turns
        if action.message.strip():
            (response,) = self._respond([context + action.message])
            turn = Exchange(context, action.message, response)
        else:
            turn = Exchange(context, NoAttack(written=action.message), NotAsked())
        (value,) = self._score([turn])
        is_answered = not isinstance(turn.response, NoReply | NotAsked)
        is_over = not is_answered or self._turns == self._most
        if not is_over:
            self._conversation = context + turn.attack + turn.response
        return self._reply(
            response=str(turn.response),
            done=is_over,
            reward=None if math.isnan(value) else float(value),
        )

    def _reply(self, **values: Any) -> Reply:
        read = as_attacker_reads(self._openings[self._opening])
        return Reply(
            prompt=read.prompt, opening=self._opening, openings=len(self._openings), **values
        )


def environment_app(
    openings: Sequence[Conversation | str],
    target: Target,
    reward: str | Moderator[Any, Any] | RewardPart,
    *,
    turns: int = 1,
    moderator: str | Moderator[Any, Any] | None = None,
    most_sessions: int = MOST_SESSIONS,
    seconds_idle: float = SECONDS_IDLE,
) -> FastAPI:
    """Return an OpenEnv server of conversations with a target, as a FastAPI application.

    One message at a time is answered and scored; the others wait. Whoever reaches the server can
    send messages to the target: let it listen on a loopback address, or behind a proxy that checks
    who is asking. Pages in a browser are refused unless they are of this machine, because any page
    can send messages to a loopback address.

    Args:
        openings: What conversations begin with; of a run: those of `to_trl_dataset`.
        target: Answers the messages.
        reward: A moderator, its name, a YAML file, or a reward that needs no probabilities.
        turns: Messages of a conversation.
        moderator: Moderator of a reward with terms that have none of their own.
        most_sessions: Largest number of open connections; one per conversation at a time.
        seconds_idle: Seconds after which a session that sends nothing is forgotten, so that
            connections that were lost do not fill the server; longer than an update of the trainer.

    Raises:
        ConfigurationError: There is no opening or no turn, or the reward needs probabilities.
    """
    if not openings or turns < 1:
        raise ConfigurationError(
            f"{len(openings)} openings and turns={turns}; give at least one of each."
        )
    score, _ = scorer_of(reward, target, moderator)
    known = [Conversation.of(each) for each in openings]
    lock = threading.Lock()

    def respond(contexts: Sequence[str]) -> Sequence[str]:
        with lock:
            return answer(contexts, target.respond)

    def scored(turns: Sequence[Exchange]) -> Sequence[float]:
        with lock:
            return score(turns)

    app = create_fastapi_app(
        lambda: AttackEnvironment(known, respond, scored, turns),
        Attack,
        Reply,
        concurrency_config=ConcurrencyConfig(
            max_concurrent_envs=most_sessions, session_timeout=seconds_idle
        ),
    )
    app.add_middleware(_RefusesPages)
    return app


class _RefusesPages:
    """Refuses what a browser sends for a page of another machine, also by DNS rebinding."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_request = scope["type"] in ("http", "websocket")
        origin = Headers(scope=scope).get("origin") if is_request else None
        if origin is None or _is_of_this_machine(origin):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before accept: HTTP status 403
        else:
            refused = PlainTextResponse("pages of other machines are refused", status_code=403)
            await refused(scope, receive, send)


def _is_of_this_machine(origin: str) -> bool:
    try:
        return is_loopback(origin)
    except ValueError:
        return False


class AttackSession:
    """One connection to the server, as ``environment_factory`` of `trl.GRPOTrainer` makes it.

    The model that is trained calls `send_message` as a tool, so that it must be able to call tools.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self._client = GenericEnvClient(base_url=url, message_timeout_s=timeout).sync()
        self._rewards: list[float | None] = []
        self._is_over = False

    def reset(self, opening: int | None = None, **columns: Any) -> None:
        """Begin a conversation with an opening; the prompt is that of `opening_dataset`."""
        self._rewards, self._is_over = [], False
        self._client.reset(**({} if opening is None else {"opening": opening}))

    def send_message(self, message: str) -> str:
        """Send a message to the other side and return its response.

        Args:
            message: The message, as a user writes it.

        Returns:
            The response.
        """
        if self._is_over:
            raise ValueError("The conversation is over.")
        found = self._client.step({"message": message})
        self._rewards.append(found.reward)
        self._is_over = found.done
        return str(found.observation["response"])

    def get_reward(self) -> float | None:
        """Return the sum of the rewards; None without a message, or with a missing score."""
        known = [each for each in self._rewards if each is not None]
        return math.fsum(known) if known and len(known) == len(self._rewards) else None


def attack_sessions(url: str, *, timeout: float = TIMEOUT) -> Callable[[], AttackSession]:
    """Return the ``environment_factory`` of `trl.GRPOTrainer` for the server at an address.

    Args:
        url: Address of the server.
        timeout: Seconds to wait for a response and its score.
    """
    return lambda: AttackSession(url, timeout)


def opening_dataset(url: str) -> datasets.Dataset:
    """Return a row per opening of the server: what the attacker reads, and its number.

    Raises:
        MissingDependencyError: The extra ``data`` is not installed.
    """
    dataset = require("datasets", extra="data").Dataset
    with GenericEnvClient(base_url=url).sync() as client:
        count, rows = 1, list[dict[str, Any]]()
        while len(rows) < count:
            seen = client.reset(opening=len(rows)).observation
            count = seen["openings"]
            prompt = [{"role": "user", "content": seen["prompt"]}]
            rows.append({"prompt": prompt, "opening": len(rows)})
    return dataset.from_list(rows)


__all__ = [
    "Attack",
    "AttackEnvironment",
    "AttackSession",
    "Reply",
    "attack_sessions",
    "environment_app",
    "opening_dataset",
]
