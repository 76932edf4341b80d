"""Token merging: patches that attention takes for alike become one token (Bolya et al., ICLR 2023, section 3).

In every block, between attention and MLP, a number of patches join the patch that is most like them by its keys, as
the mean over all that they stand for. What stands for more weighs more in attention (section 3.3, equation 1).

B streams (both of every pair), N tokens, P of them patches, D width, H heads, R patches that are merged.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """Which patches have become one. Patches lie together among the tokens, from number `first` on; no other token is
    ever merged. Nothing here is changed in place, and nothing waits for the device."""

    first: int
    size: Tensor  # (B, P) float32: how many patches each one stands for
    source: Tensor  # (B, patches at the beginning) int64: in which of the P each of them is now

    @classmethod
    def none(cls, x: Tensor, first: int, patches: int) -> "Merged":
        """Before the first block, of tokens x (B, N, D): every patch is itself."""
        size = torch.ones(len(x), patches, device=x.device)
        return cls(first, size, torch.arange(patches, device=x.device).expand(len(x), -1))

    @property
    def patches(self) -> int:
        """How many are left."""
        return self.size.shape[1]

    def weights(self, tokens: int, kind: torch.dtype) -> Tensor:
        """What is added to attention's scores of the N tokens: (B, 1, 1, N)."""
        behind = tokens - self.first - self.patches
        return F.pad(self.size.log(), (self.first, behind)).to(kind)[:, None, None]

    def merge(self, x: Tensor, keys: Tensor, most: int) -> tuple[Tensor, "Merged"]:
        """Merge `most` patches of tokens x (B, N, D), or half of those that are left, by attention's keys
        (B, H, N, D/H): (B, N - R, D) and what stands for what in it."""
        merges = min(most, self.patches // 2)
        if not merges:
            return x, self
        kept, gone, into = self._match(keys, merges)
        new = torch.zeros_like(self.size, dtype=torch.int64).scatter_(  # where each patch is afterwards
            1, kept, torch.arange(kept.shape[1], device=x.device).expand_as(kept))
        new = new.scatter(1, gone, new.gather(1, into))  # (B, P)
        size = torch.zeros_like(self.size[:, merges:]).scatter_add(1, new, self.size)
        share = self.size.gather(1, gone) / size.gather(1, new.gather(1, gone))  # (B, R), of the token that they join
        streams, tokens, width = x.shape
        rows, begin = x.reshape(-1, width), torch.arange(streams, device=x.device)[:, None]
        here, there = begin * tokens + self.first, begin * (tokens - merges) + self.first
        moved = (rows[here + gone] - rows[here + into]) * share[..., None].to(x.dtype)  # (B, R, D)
        left = torch.cat([x[:, : self.first], rows[here + kept], x[:, self.first + self.patches :]], 1)
        left = left.view(-1, width).index_add_(0, (there + new.gather(1, gone)).flatten(), moved.flatten(0, 1))
        return left.view(streams, -1, width), replace(self, size=size, source=new.gather(1, self.source))

    @torch.no_grad()
    def _match(self, keys: Tensor, merges: int) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the patches that stay (B, P - R) in their order, that go (B, R), and that those join (B, R): the
        most similar ones between even and odd places (bipartite soft matching)."""
        like = F.normalize(keys[:, :, self.first : self.first + self.patches].float().mean(1), dim=-1)  # (B, P, D/H)
        score, other = (like[:, ::2] @ like[:, 1::2].mT).max(-1)  # of each even place
        best = score.topk(merges, 1).indices
        gone, into = 2 * best, 2 * other.gather(1, best) + 1
        is_gone = torch.zeros_like(self.size).scatter_(1, gone, 1.0)
        kept = is_gone.argsort(dim=1, stable=True)[:, : self.patches - merges]
        return kept, gone, into

    def spread(self, of_tokens: Tensor) -> Tensor:
        """Numbers of the N tokens (B, N) as those of the patches at the beginning: each has that of its token."""
        return of_tokens[:, self.first : self.first + self.patches].gather(1, self.source)


def left(patches: int, most: int, blocks: int) -> int:
    """How many of these patches the last of so many blocks gets, if each before it merges `most`, or half of them."""
    for _ in range(blocks - 1):
        patches -= min(most, patches // 2)
    return patches
