"""Fingerprints of model weights, for records that say which model computed something."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# torch is imported where it is used: commands on finished runs read records without it.


def fingerprint(model: nn.Module) -> str:
    """Return a 12-digit hash of a model's weights: names, shapes and up to 64 values of each.

    It takes milliseconds for a model of any size. Fine-tuned weights have another fingerprint, and
    so do the same weights in another dtype, because their scores differ.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        chosen = torch.linspace(0, max(0, len(flat) - 1), min(64, len(flat))).long()
        values = flat[chosen.to(flat.device)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {values.tolist()}".encode())
    return digest.hexdigest()[:12]


def weights_of(holder: object) -> str | None:
    """Return which model an object uses; None if it does not say.

    Objects of any class are accepted, for instance a client written by a user. The first of these
    attributes that is present decides:

    - ``identity``, a string: returned as it is (a `Target` has one);
    - ``model``, a torch module: its source (``model_id`` and the hub commit) and its `fingerprint`;
    - ``model``, a string: the name of a model behind an endpoint;
    - ``name``, a string.
    """
    identity = getattr(holder, "identity", None)
    if isinstance(identity, str):
        return identity
    from torch import nn

    model = getattr(holder, "model", None)
    if isinstance(model, nn.Module):
        commit = getattr(getattr(model, "config", None), "_commit_hash", None)
        source = str(getattr(holder, "model_id", "") or type(model).__name__)
        return f"{source}{f'@{commit}' if commit else ''} {fingerprint(model)}"
    name = model if isinstance(model, str) else getattr(holder, "name", None)
    return name if isinstance(name, str) else None
