"""What training does to spectrograms and whole modalities on the device, after what the loader does to pictures.

B pairs, S image size; a spectrogram is (S, S), time first, standardised: 0 is the training set's mean.
"""

import torch
from torch import Tensor
from torchaudio.transforms import FrequencyMasking, TimeMasking

from maavt.clips import ABSENT
from maavt.params import AugmentSound
from maavt.training.runtime import cut


def augment_sound(sound: Tensor, settings: AugmentSound) -> Tensor:
    """Spectrograms (B, S, S), each changed in its own way, drawn from torch's global generators.

    Time and frequency masks are SpecAugment's (Park et al., Interspeech 2019), in torchaudio's form; stretching stands
    for another tempo and another pitch (random resized crop: Niizumi et al., BYOL for Audio, IJCNN 2021).
    """
    pairs, times, bins = sound.shape
    if settings.stretch:
        sound = _stretched(sound, settings.stretch)
    if settings.shift:
        most = round(settings.shift * times)
        offsets = torch.randint(-most, most + 1, (pairs, 1), device=sound.device)
        places = (torch.arange(times, device=sound.device) - offsets) % times  # (B, S); what leaves comes in again
        sound = sound.gather(1, places[:, :, None].expand_as(sound))
    masks = ((TimeMasking, settings.time_mask * times), (FrequencyMasking, settings.frequency_mask * bins))
    upright = sound.mT[:, None]  # (B, 1, frequency, time), as torchaudio has it
    for mask, width in masks:
        if round(width):
            upright = mask(round(width), iid_masks=True)(upright)
    return upright[:, 0].mT


def _stretched(sound: Tensor, most: float) -> Tensor:
    """Spectrograms (B, S, S) whose time and frequencies are scaled by 1 - most to 1 + most, each on its own, and moved
    so that they fill the square, or lie within it; what is nearest fills the rest."""
    size = sound.shape[-1]
    sides = size * (1 + most * (2 * torch.rand(len(sound), 2, device=sound.device) - 1))  # of frequency, and of time
    corners = (size - sides) * torch.rand_like(sides)
    return cut(sound[:, None], torch.cat([corners, sides], 1), size)[:, 0]


def drop_modality(absent: Tensor | None, pairs: int, share: float, generator: torch.Generator) -> Tensor:
    """Which modality each of the pairs is without (B,), as in Batch, when about `share` of those that have both lose
    one at random. Nothing here waits for the device."""
    device = generator.device
    absent = torch.zeros(pairs, dtype=torch.uint8, device=device) if absent is None else absent.to(
        device, non_blocking=True)
    drawn, which = torch.rand(2, pairs, generator=generator, device=device)
    lost = torch.where(which < 0.5, ABSENT.index("sound"), ABSENT.index("picture")).to(torch.uint8)
    return torch.where((absent == 0) & (drawn < share), lost, absent)
