"""What each of two streams has of its own in a block of the frozen ViT that they share.

A low-rank update of the attention's qkv (LoRA: Hu et al., ICLR 2022) and a bottleneck beside the MLP (AdaptFormer:
Chen et al., NeurIPS 2022). Both begin at zero. B pairs, N tokens of a stream, D width, R rank, W bottleneck.
"""

import torch
from torch import Tensor, nn


class StreamAdapters(nn.Module):
    """The parts of one block, for tokens (2 B, N, D): the first half of a batch is visual, the second audio.

    `rank` 0 leaves out the update, `bottleneck` 0 the bottleneck.
    """

    def __init__(self, width: int, rank: int, bottleneck: int):
        super().__init__()
        self.rank, self.bottleneck = rank, bottleneck
        if rank:
            self.low = nn.Parameter(_uniform(width, rank))  # (2, D, R)
            self.high = nn.Parameter(torch.zeros(2, rank, 3 * width))
        if bottleneck:
            self.down = nn.Parameter(_uniform(width, bottleneck))  # (2, D, W)
            self.bias = nn.Parameter(torch.zeros(2, 1, bottleneck))
            self.up = nn.Parameter(torch.zeros(2, bottleneck, width))

    def update(self, products: Tensor, y: Tensor, columns: slice = slice(None)) -> Tensor:
        """These columns of qkv of the normed tokens y (2 B, N, D), with the update: (2 B, N, columns)."""
        if not self.rank:
            return products
        low = _streams(y) @ self.low.to(y.dtype)  # (2, B N, R)
        high = self.high[..., columns].to(y.dtype)
        return torch.baddbmm(_streams(products), low, high).view_as(products)

    def beside_mlp(self, y: Tensor, act: nn.Module) -> Tensor | None:
        """What the bottleneck adds, from the normed tokens that the MLP reads: (2 B, N, D)."""
        if not self.bottleneck:
            return None
        hidden = torch.baddbmm(self.bias.to(y.dtype), _streams(y), self.down.to(y.dtype))  # (2, B N, W)
        return (act(hidden) @ self.up.to(y.dtype)).view_as(y)


def _streams(x: Tensor) -> Tensor:
    """(2 B, N, D) -> (2, B N, D)."""
    return x.reshape(2, -1, x.shape[-1])


def _uniform(width: int, outputs: int) -> Tensor:
    """(2, D, outputs), drawn as torch draws the weights of linear layers."""
    return torch.empty(2, width, outputs).uniform_(-(width**-0.5), width**-0.5)
