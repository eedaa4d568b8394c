"""A Hugging Face decoder -> the plain PyTorch one would write by hand to be compiled: fused projections, caches in place."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mkc.errors import ModelError

KNOWN = ("Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM")


class Lean(nn.Module):
    """One step a call: reads `token` [B], all at `position` [1], attends `room` rows, and leaves both for the next.

    `native` leaves attention to PyTorch's own function instead of two products; which is faster depends on the context.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    rows: torch.Tensor
    token: torch.Tensor
    position: torch.Tensor

    def __init__(self, model: Any, room: int, native: bool = False, batch: int = 1) -> None:
        super().__init__()
        if type(model).__name__ not in KNOWN:
            raise ModelError(f"there is no lean decoder of a {type(model).__name__}, only of {', '.join(KNOWN)}")
        config, device, dtype = model.config, model.device, model.dtype
        self.native, self.eps, self.room, self.batch = native, config.rms_norm_eps, room, batch
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.embedding, self.head, self.norm = model.model.embed_tokens.weight, model.lm_head.weight, model.model.norm.weight
        self.blocks = nn.ModuleList(Block(layer, self) for layer in model.model.layers)
        cos, sin = model.model.rotary_emb(self.embedding[:1], torch.arange(room, device=device)[None])
        for name, value in dict(
            cos=cos[0].to(dtype), sin=sin[0].to(dtype), rows=torch.arange(room, device=device),
            token=torch.zeros(batch, dtype=torch.int64, device=device),
            position=torch.zeros(1, dtype=torch.int64, device=device),
        ).items():  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    def forward(self) -> torch.Tensor:
        found = self.logits().argmax(-1)
        self.token.copy_(found)
        self.position.add_(1)
        return found

    def logits(self) -> torch.Tensor:
        """[B, vocabulary] of what follows `token`."""
        x = F.embedding(self.token, self.embedding)  # [B, hidden]
        cos, sin = self.cos.index_select(0, self.position), self.sin.index_select(0, self.position)
        seen = self.rows <= self.position
        for block in self.blocks:
            x = block(x, cos, sin, seen, self.position)
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm, self.eps), self.head)


class Block(nn.Module):
    """A layer, with its caches [B, key-value heads, room, width]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, of: Lean) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.kv_heads, self.width, self.eps, self.native = of.heads, of.kv_heads, of.width, of.eps, of.native
        self.before, self.between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv, self.qkv_bias = _joined([p.weight for p in projections]), _joined([p.bias for p in projections])
        self.gate_up = _joined([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.out, self.down = attention.o_proj.weight, mlp.down_proj.weight
        self.act: Callable[[torch.Tensor], torch.Tensor] = mlp.act_fn
        self.q_norm, self.k_norm = (getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm"))
        for name in ("keys", "values"):
            cache = self.before.new_zeros(of.batch, of.kv_heads, of.room, of.width)
            self.register_buffer(name, cache, persistent=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, seen: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        h = F.linear(F.rms_norm(x, x.shape[-1:], self.before, self.eps), self.qkv, self.qkv_bias)
        q, k, v = torch.split(h.view(len(h), -1, self.width), [self.heads, self.kv_heads, self.kv_heads], 1)
        if self.q_norm is not None:
            q = F.rms_norm(q, (self.width,), self.q_norm, self.eps)
            k = F.rms_norm(k, (self.width,), self.k_norm, self.eps)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        self.keys.index_copy_(2, position, k.unsqueeze(2))
        self.values.index_copy_(2, position, v.unsqueeze(2))
        x = x + F.linear(self._attend(q, seen).reshape(len(h), -1), self.out)
        gate, up = F.linear(F.rms_norm(x, x.shape[-1:], self.between, self.eps), self.gate_up).chunk(2, -1)
        return x + F.linear(self.act(gate) * up, self.down)

    def _attend(self, q: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """q [B, heads, width] -> the same. The heads of a group meet their keys in one product, so none is repeated."""
        if self.native:
            mask = seen[None, None, None]
            return F.scaled_dot_product_attention(q.unsqueeze(2), self.keys, self.values, attn_mask=mask, enable_gqa=True)
        q = q.reshape(len(q), self.kv_heads, -1, self.width) * self.width**-0.5
        scores = q @ self.keys.transpose(2, 3)  # [B, key-value heads, group, room]
        weights = scores.float().masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
        return weights @ self.values


def _joined(parts: list[Any]) -> Any:
    """One parameter of several, or None of none."""
    if parts[0] is None:
        return None
    return nn.Parameter(torch.cat(parts), requires_grad=False)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
