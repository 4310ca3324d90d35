"""A loaded adapter: features in, keys and values for every cross-attention out. Used by `session`, once per job.

An adapter is needed only until its K and V exist: keep the result of `layer_kv` and drop the adapter. Its attention
weights stay on the CPU in the dtype they are stored in (SDXL: 700 MB in float16) and visit the device one layer at a
time. Everything is computed in the projector's dtype or in float32, whatever autocast the host has switched on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..library.errors import AdapterFileError, IPAdapterError, WrongEncoderError
from ..library.spec import AdapterSpec
from .autocast import without_autocast
from .checkpoint import read_tensors
from .embeds import Features, ImageTokens
from .projections import build_projector
from .schedule import COND, UNCOND

_PROJECTOR_PREFIX = "image_proj."
LayerKV = dict[int, tuple[Tensor, Tensor]]


class Adapter:
    """An adapter's projector and its `to_k_ip`, `to_v_ip` weights by key id, each `(C, D)`."""

    def __init__(
        self, spec: AdapterSpec, projector: nn.Module, to_k: Mapping[int, Tensor], to_v: Mapping[int, Tensor]
    ) -> None:
        self.spec = spec
        self.projector = projector
        self.to_k = dict(to_k)
        self.to_v = dict(to_v)

    @torch.no_grad()
    def project(self, features: Features, *, s_scale: float = 1.0) -> Tensor:
        """Turn n references' features into tokens (n, T, D), on the projector's device and in its dtype.

        `s_scale` is FaceID-Plus V2's weight of CLIP's view of the face; other kinds have none and ignore it.

        Raises: WrongEncoderError when a feature is missing or has another width than the projector was made for.
        """
        inputs = [self._fitting(features, name, width) for name, width in self._wanted_features()]
        options: dict[str, float | bool] = {}
        if self.spec.projector.family == "face_plus":
            options = {"shortcut": self.spec.kind == "faceid_plus_v2", "s_scale": s_scale}
        with without_autocast(inputs[0].device):
            return self.projector(*inputs, **options)

    def zero_features(self, n: int, hidden: Tensor | None = None) -> Features:
        """Make the official zero-embedding uncond of pooled and face kinds, n rows of it.

        Kinds that read CLIP's hidden states take those of an all-zero pixel tensor instead (official
        `get_image_embeds`; never a zero embedding): FaceID-Plus gets them here as `hidden` (n, L, H), for the plus
        kinds they are the whole uncond.

        Raises: IPAdapterError when the kind needs `hidden` and there is none.
        """
        wanted = dict(self._wanted_features())
        if "hidden" in wanted and hidden is None:
            raise IPAdapterError(
                f"A {self.spec.kind} adapter has no zero-embedding uncond: encode an all-zero pixel tensor instead."
            )
        zeros = {name: torch.zeros(n, width) for name, width in wanted.items() if name != "hidden"}
        return Features(
            pooled=zeros.get("pooled"), face=zeros.get("face"), hidden=hidden if "hidden" in wanted else None
        )

    @torch.no_grad()
    def layer_kv(self, tokens: ImageTokens, *, dtype: torch.dtype | None = None) -> LayerKV:
        """Compute every layer's keys and values: key id -> K, V, each (2, T', C), rows COND and UNCOND.

        K = tokens @ to_k_ip.T, V = tokens @ to_v_ip.T (official IPAttnProcessor), in float32 on the tokens' device;
        `dtype` is the result's, the tokens' own if None. Beside the result, one layer's weights at a time are held.
        """
        rows = torch.empty((2, *tokens.cond.shape[1:]), device=tokens.cond.device, dtype=torch.float32)
        rows[COND], rows[UNCOND] = tokens.cond[0], tokens.uncond[0]
        dtype = dtype or tokens.cond.dtype
        with without_autocast(rows.device):
            return {
                key_id: (_matmul(rows, self.to_k[key_id]).to(dtype), _matmul(rows, self.to_v[key_id]).to(dtype))
                for key_id in sorted(self.to_k)
            }

    def _wanted_features(self) -> list[tuple[str, int]]:
        """Return the `Features` fields the projector takes, in its order, with their widths."""
        spec = self.spec.projector
        if self.spec.feature == "face_hidden":
            return [("face", spec.input_dim), ("hidden", spec.hidden_dim)]
        return [("face" if self.spec.feature == "face_raw" else self.spec.feature, spec.input_dim)]

    def _fitting(self, features: Features, name: str, width: int) -> Tensor:
        feature: Tensor | None = getattr(features, name)
        needed = f"{self.spec.variant or self.spec.kind} needs {width}-wide {name} features"
        encoders = " + ".join(self.spec.encoders)
        if feature is None:
            raise WrongEncoderError(f"{needed} and got none: run its encoder ({encoders}).")
        if feature.shape[-1] != width:
            raise WrongEncoderError(f"{needed} and got {feature.shape[-1]}: choose its encoder ({encoders}).")
        parameter = next(self.projector.parameters())
        return feature.to(device=parameter.device, dtype=parameter.dtype)


def load_adapter(
    spec: AdapterSpec, path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Adapter:
    """Read a described adapter: projector on `device` in `dtype`, attention weights on the CPU as they are stored.

    The LoRA inside FaceID files is not read here.

    Raises: AdapterFileError when a tensor is missing or of another shape than described.
    """
    attention_names = {f"ip_adapter.{key_id}.to_{x}_ip.weight": (key_id, x) for key_id in spec.layers for x in "kv"}
    absent = sorted(attention_names.keys() - spec.tensors.keys())
    if absent:
        raise AdapterFileError(f"{path.name} lacks {len(absent)} attention tensors ({absent[0]}...): re-download it.")
    wanted = {
        official: stored
        for official, stored in spec.tensors.items()
        if official.startswith(_PROJECTOR_PREFIX) or official in attention_names
    }
    tensors = read_tensors(path, wanted)
    weights: dict[str, dict[int, Tensor]] = {"k": {}, "v": {}}
    for name, (key_id, x) in attention_names.items():
        weight = tensors.pop(name)
        expected = (spec.layers[key_id], spec.context_dim)
        if tuple(weight.shape) != expected:
            raise AdapterFileError(
                f"{path.name}: {name} is {tuple(weight.shape)}, expected {expected}; re-download it."
            )
        weights[x][key_id] = weight
    projector = build_projector(spec.projector, {n.removeprefix(_PROJECTOR_PREFIX): t for n, t in tensors.items()})
    return Adapter(spec, projector.to(device=device, dtype=dtype), weights["k"], weights["v"])


def _matmul(rows: Tensor, weight: Tensor) -> Tensor:
    # Moved in the stored dtype and widened on the device: half the traffic, and only one layer in float32 at a time.
    return rows @ weight.to(rows.device).to(rows.dtype).T
