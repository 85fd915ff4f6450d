"""Where attacker, target and judge run: in this process, in vLLM, or on servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServersConfig(_Section):
    """vLLM servers that serve one model; see `astra_rl.ext.vllm.ServerPool`."""

    servers: tuple[str, ...] = Field(min_length=1, description="URLs of the servers.")
    model: str | None = Field(
        None, description="Name of the model at the servers; default: that of the configuration."
    )
    api_key_env: str | None = Field(
        None, description="Environment variable with the key of the servers; default: no key."
    )
    timeout: float = Field(600.0, gt=0, description="Seconds for a request.")
    adapters: str | None = Field(
        None,
        description="Folder for versions of the attacker, adapters or all weights, that all "
        "servers can read; default: a temporary folder, for servers on this machine.",
    )
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = Field(
        "raw_logprobs",
        description="What the servers were started with (--logprobs-mode): at another temperature "
        "than 1 only processed_logprobs are those of what was sampled.",
    )


class VLLMConfig(_Section):
    """vLLM in this process, with arguments of its own."""

    vllm: dict[str, Any] = Field(
        description="Arguments of vllm.LLM, for instance gpu_memory_utilization: 0.4; and sleep: "
        "true, which frees the engine's memory while nothing is sampled (on GPUs)."
    )


def kind_of_engine(value: Any) -> str:
    """Return the kind of an engine: "name" if it has no arguments, else "vllm" or "servers"."""
    if isinstance(value, VLLMConfig) or (isinstance(value, Mapping) and "vllm" in value):
        return "vllm"
    return "servers" if isinstance(value, Mapping | ServersConfig) else "name"


EngineConfig = Annotated[
    Annotated[Literal["own", "vllm"], Tag("name")]
    | Annotated[VLLMConfig, Tag("vllm")]
    | Annotated[ServersConfig, Tag("servers")],
    Discriminator(kind_of_engine),
]


class RolloutConfig(_Section):
    """What runs attacker, target and judge."""

    attacker: EngineConfig = Field(
        "own",
        description="own: the sampler of this process; vllm: vLLM in this process; or servers. The "
        "latter two get the adapter, or all weights, whenever they have been trained.",
    )
    target: EngineConfig = Field(
        "own",
        description="The same for the target, whose weights are then not loaded here.",
    )
    judge: EngineConfig = Field(
        "own",
        description="The same for the language model of the moderator and of the judge "
        "(options.model_id), which is then not loaded here.",
    )

    @property
    def is_own(self) -> bool:
        """Whether everything is sampled in this process."""
        return self.attacker == self.target == self.judge == "own"
