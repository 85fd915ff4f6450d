"""Inference engines of vLLM: in this process, and pools of servers."""

from astra_rl.ext.vllm.engine import VLLMEngine as VLLMEngine
from astra_rl.ext.vllm.engine import VLLMSampler as VLLMSampler
from astra_rl.ext.vllm.servers import ServerPool as ServerPool
from astra_rl.ext.vllm.servers import server_sampler as server_sampler

__all__ = ["ServerPool", "VLLMEngine", "VLLMSampler", "server_sampler"]
