"""Trainings with sharded weights, gradients and optimizer states, for `test_sharding.py`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed import cases
from tests.distributed.cases import whole
from torch.utils.checkpoint import checkpoint

from astra_rl import GRPO
from astra_rl.core.moderator import Moderator
from astra_rl.distributed.ranks import join
from astra_rl.errors import AstraError, ProcessLostError
from astra_rl.ext.transformers import HFASTConfiguration, HFASTProblem, HFASTTrainer
from astra_rl.methods import ASTEnvironment
from astra_rl.models.generation import Sampling
from astra_rl.models.loading import load_model
from astra_rl.testing import tiny_model
from astra_rl.training import sharding
from astra_rl.training.callbacks import TrainerCallback, TrainingStates
from astra_rl.training.config import OPTIMIZERS
from astra_rl.training.memory_warning import state_bytes
from astra_rl.training.precision import build_optimizer, optimizer_factory
from astra_rl.training.sharding import ShardedWeightOptimizer
from astra_rl.training.states import load_state

SHARDED: dict[str, Any] = {"sharding": "fsdp"}


def trained(problem: Any) -> list[Any]:
    """Return the trained parameters of a problem."""
    return [each for each in problem.parameters() if each.requires_grad]


def outcome(trainer: cases.Recording) -> dict[str, Any]:
    """Return weights, logs and attacks of a training."""
    weights = [number for each in trained(trainer.algorithm.problem) for number in whole(each)]
    return {**cases.outcome(trainer), "numbers": weights, "norms": norms(trainer)}


def norms(trainer: cases.Recording) -> list[float]:
    """Return the norm of the gradient in each step."""
    return [row["grad_norm"] for row in trainer.logs]


def train(name: str, **options: Any) -> dict[str, Any]:
    """Train, and return the outcome."""
    trainer = cases.trainer(name, **options)
    trainer.train()
    return outcome(trainer)


def half_precision(name: str, **options: Any) -> dict[str, Any]:
    """Train bfloat16 weights with float32 masters; a value head is in float32."""
    trainer = cases.trainer(name, dtype=torch.bfloat16, **options)
    trainer.train()
    optimizer: Any = trainer.optimizer
    masters = [number for each in optimizer.masters for number in whole(each)]
    return {**outcome(trainer), "masters": masters}


def kept_bytes(**options: Any) -> tuple[int, int, int]:
    """Train; return the bytes of copies and of optimizer states here, and the number of weights.

    Between them: the bytes of gradients and states that are expected before the first update.
    """
    trainer = cases.trainer("grpo", dtype=torch.bfloat16, **options)
    expected = state_bytes(trainer.optimizer, trainer.optimizer.param_groups[0]["params"])
    trainer.train()
    optimizer = trainer.optimizer
    assert isinstance(optimizer, ShardedWeightOptimizer)
    assert all(each.grad is None for each in optimizer.trained)
    state = [each for values in optimizer.state.values() for each in values.values()]
    local = [each.to_local() for each in [*optimizer.masters, *state] if hasattr(each, "to_local")]
    kept, weights = sum(each.nbytes for each in local), sum(p.numel() for p in optimizer.trained)
    return kept, expected, weights


def waiting_gradients(name: str, **options: Any) -> tuple[int, int]:
    """Train; return the largest share of the weights whose gradients waited, and the weights."""
    trainer = cases.trainer(name, **options, **SHARDED)
    optimizer: Any = trainer.optimizer
    most = 0
    take = optimizer._take

    def counted(place: int, parameter: Any) -> None:
        nonlocal most
        take(place, parameter)
        most = max(most, sum(each.numel() for each in optimizer._waiting.values()))

    optimizer._take = counted
    for each in optimizer.trained:
        each._post_accumulate_grad_hooks.clear()
    for place, each in enumerate(optimizer.trained):
        each.register_post_accumulate_grad_hook(lambda p, place=place: counted(place, p))
    trainer.train()
    return most, sum(each.numel() for each in optimizer.trained)


SHAPES = ((5, 3), (1,), (7, 2, 2), (4,))


def updated(kind: str, dtype: str, *, steps: int = 3, resumed: bool = False) -> dict[str, Any]:
    """Update parameters of odd shapes; return them and the state of the optimizer.

    Each process has a loss of its own, so that the gradient is that of the sum; without others one
    process has all losses. The last parameter never has a gradient.
    """
    ranks = join()
    parameters = [
        torch.nn.Parameter(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape))
        for shape in SHAPES
    ]
    for each in parameters:
        each.data = each.data.to(getattr(torch, dtype))
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1}
    owned = range(4) if ranks.size == 1 else range(ranks.rank, 4, ranks.size)

    def build() -> Any:
        chosen = OPTIMIZERS.load(kind)
        if ranks.size == 1:
            return build_optimizer(chosen, parameters, **options)
        made = ShardedWeightOptimizer(parameters, optimizer_factory(chosen, **options), ranks)
        made.share()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "GATHERED", 16)  # several groups
        optimizer = build()
    for step in range(steps):
        if resumed and step == 1:
            state = optimizer.state_dict()
            optimizer = _rebuilt(build, optimizer, state)
        optimizer.zero_grad()
        for part in owned:
            loss = sum((each.float() * (1 + part + step)).sin().sum() for each in parameters[:-1])
            loss.backward()  # type: ignore[union-attr]
            if ranks.size > 1:
                optimizer.finish()
        if ranks.size > 1:
            for _ in range(-(-4 // ranks.size) - len(owned)):
                optimizer.finish()
            optimizer.settle()
        optimizer.step()
    state = optimizer.state_dict()
    inner = state.get("inner", state)
    return {
        "weights": [whole(each) for each in parameters],
        "masters": [whole(each) for each in state.get("masters", ()) if each is not None],
        "inner": {
            f"{place} {name}": whole(value)
            for place, values in inner["state"].items()
            for name, value in values.items()
            if value is not None
        },
    }


def _rebuilt(build: Any, old: Any, state: dict[str, Any]) -> Any:
    """Return a new optimizer with a state, of which all but the first process know nothing."""
    for parameter in old.trained if hasattr(old, "trained") else ():
        parameter._post_accumulate_grad_hooks.clear()
    if join().size == 1:
        new = build()
        new.load_state_dict(state)
        return new
    new = build()
    if join().is_first:
        masters = state.get("masters") or [each.detach().float() for each in new.trained]
        new.load_state_dict({"inner": state.get("inner", state), "masters": masters})
    else:
        for each in new.trained:
            each.data.zero_()
    new.share()
    return new


def failing_backward(what: str, rank: int, **options: Any) -> Any:
    """Train with a backward pass that fails in the middle, in one process, at one call."""
    trainer = cases.trainer("grpo", **options, **SHARDED)
    calls = itertools.count()
    problem: Any = trainer.algorithm.problem

    def fail(gradient: torch.Tensor) -> None:
        if join().rank == rank and (next(calls) == 0 or what == "never enough memory"):
            if "memory" in what:
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise ZeroDivisionError("a defect")

    def watched(module: Any, given: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(fail)

    # In the middle: the gradients of the last layer are in the shards already.
    problem.attacker.model.layers[1].input_layernorm.register_forward_hook(watched)
    try:
        trainer.train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return outcome(trainer)


def saved(folder: str, *, tied: bool = False, **options: Any) -> dict[str, Any]:
    """Train with `HFASTTrainer`; compare the saved attacker with the weights of all processes."""
    torch.manual_seed(0)
    pair = tiny_model("gpt2" if tied else "llama")
    problem = HFASTProblem(
        pair,
        tiny_model("gpt2", seed=1),
        pair,
        Length(),
        attacker_sampling=Sampling(max_new_tokens=4),
    )
    environment = ASTEnvironment(problem, ["ask: ", "say: "], tree_width=4)
    problem.attacker.to(torch.bfloat16)
    config = HFASTConfiguration(
        **{
            **{"lr": 5e-3, "batch_size": 8, "training_steps": 2, "seed": 3, "shards": 4},
            **{"save_steps": 1, **options},
        }
    )
    trainer = HFASTTrainer(config, environment, GRPO(problem), eval_every=0, ckpt_dir=folder)
    trainer.train()
    optimizer: Any = trainer.optimizer
    if hasattr(optimizer.masters[0], "full_tensor"):
        gathered = [each.full_tensor().to(torch.bfloat16) for each in optimizer.masters]
    else:
        gathered = [each.to(torch.bfloat16) for each in optimizer.masters]
    if not trainer.ranks.is_first:
        return {}
    loaded: Any = load_model(Path(folder) / "last", device="cpu", dtype="bfloat16")
    differences = [
        float((ours - theirs).detach().abs().max())
        for ours, theirs in zip(gathered, loaded.parameters(), strict=True)
    ]
    return {
        "difference": max(differences),
        "tied": loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight,
        "files": sorted(each.name for each in (Path(folder) / "last").iterdir()),
        "config": (Path(folder) / "last" / "config.json").read_text(),
        "states": sorted(each.name for each in (Path(folder) / "states").iterdir()),
    }


class Length(Moderator[str, str]):
    """Scores texts by their lengths."""

    def moderate(self, x: Any) -> list[float]:
        """Return a score per text."""
        return [len(str(each)) % 7 / 7 for each in x]


def interrupted(folder: str, *, until: int, steps: int = 4, **options: Any) -> dict[str, Any]:
    """Train up to a step from the newest state of a folder, and return the outcome."""
    trainer = cases.trainer("grpo", training_steps=steps, **options)
    trainer.callbacks += [_Until(until), TrainingStates(folder, every=1)]
    found = load_state(folder) if trainer.ranks.is_first else None
    if found is not None:
        trainer.load_state_dict(found[1])
    trainer.train()
    done = outcome(trainer)
    del done["logs"]  # of the steps of this call
    return {**done, "norms": done["norms"][-2:], "step": trainer.completed_steps}


class _Until(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any, step: int, logs: Any) -> None:
        trainer.should_stop = trainer.should_stop or step >= self.step


def state_keys(folder: str) -> Any:
    """Return the names and shapes in the newest state of a folder."""
    found = load_state(folder)
    assert found is not None
    return _shapes(found[1])


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [list(value.shape), str(value.dtype)]
    if isinstance(value, dict):
        return {name: _shapes(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shapes(each) for each in value]
    return type(value).__name__


def asked_by_all(**options: Any) -> str:
    """Train with a callback that asks for the state in every process; return the error."""

    class Asking(TrainerCallback):
        every_process = True

        def on_step_end(self, trainer: Any, step: int, logs: Any) -> None:
            trainer.state_dict()

    trainer = cases.trainer("grpo", **options, **SHARDED)
    trainer.callbacks.append(Asking())
    try:
        trainer.train()
    except AstraError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def trained_again(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train in one call and in two; return both outcomes."""
    once = cases.trainer("grpo", **options, **SHARDED)
    once.train()
    twice = cases.trainer("grpo", **options, **SHARDED)
    twice.callbacks.append(_Until(1))
    twice.train()
    twice.callbacks.clear()
    twice.should_stop = False
    logs = twice.logs
    twice.train()
    twice.logs = [*logs, *twice.logs]
    return outcome(once), outcome(twice)


def scalar() -> str:
    """Return why a parameter without a dimension is refused."""
    number = torch.nn.Parameter(torch.tensor(1.0))
    try:
        ShardedWeightOptimizer([number], optimizer_factory(torch.optim.Adam, 0.1), join())
    except AstraError as error:
        return str(error)
    return ""


def computed_twice() -> str:
    """Return why a weight whose gradient is computed twice in a backward pass is refused."""
    layer = torch.nn.Linear(2, 2, bias=False)
    factory = optimizer_factory(torch.optim.SGD, 0.1)
    optimizer = ShardedWeightOptimizer(layer.parameters(), factory, join())
    optimizer.share()
    hidden = torch.ones(1, 2, requires_grad=True)
    for _ in range(2):
        hidden = checkpoint(layer, hidden, use_reentrant=True)
    try:
        hidden.sum().backward()
    except AstraError as error:
        return str(error)
    finally:
        optimizer.finish()
    return ""


def failing_gathering(rank: int, *, swallowed: bool, **options: Any) -> str:
    """Train with a callback that asks for the state, which one process has no memory for."""
    trainer = cases.trainer("grpo", **options, **SHARDED)

    class Asks(TrainerCallback):
        def on_step_end(self, trainer: Any, step: int, logs: Any) -> None:
            try:
                trainer.state_dict()
            except ProcessLostError:
                if not swallowed:
                    raise

    def fail(tensor: Any) -> None:
        raise MemoryError("out of main memory")

    trainer.callbacks.append(Asks())
    if join().rank == rank:
        trainer.optimizer._gathered_tensor = fail
    try:
        trainer.train()
    except AstraError as error:
        return f"{type(error).__name__}: {error}"
    return ""
