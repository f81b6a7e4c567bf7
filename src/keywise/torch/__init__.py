"""Attention that trains, for torch: drop-in functions and modules, with differentiable attention statistics."""

from keywise.util.optional_imports import require_modules

require_modules("torch", "torch")

from keywise.attention.stats_request import StatsRequest  # noqa: E402  (torch must be there)
from keywise.torch.functional import attend, attention_stats, scaled_dot_product_attention  # noqa: E402
from keywise.torch.multihead import MultiheadAttention, Replacement, replace_attention  # noqa: E402
from keywise.torch.sdpa_mode import SdpaReport, disable, enable, sdpa  # noqa: E402

__all__ = [
    "MultiheadAttention",
    "Replacement",
    "SdpaReport",
    "StatsRequest",
    "attend",
    "attention_stats",
    "disable",
    "enable",
    "replace_attention",
    "scaled_dot_product_attention",
    "sdpa",
]
