"""What training does to spectrograms on the device, on top of what the loader does to pictures.

B pairs, S image size; a spectrogram is (S, S), time first, standardised: 0 is the training set's mean.
"""

import torch
from torch import Tensor
from torchaudio.transforms import FrequencyMasking, TimeMasking

from maavt.params import AugmentSound


def augment_sound(sound: Tensor, settings: AugmentSound) -> Tensor:
    """Spectrograms (B, S, S), each changed in its own way, drawn from torch's global generators.

    Time and frequency masks are SpecAugment's (Park et al., Interspeech 2019), in torchaudio's form.
    """
    pairs, times, bins = sound.shape
    if settings.shift:
        most = round(settings.shift * times)
        offsets = torch.randint(-most, most + 1, (pairs, 1), device=sound.device)
        places = (torch.arange(times, device=sound.device) - offsets) % times  # (B, S); what leaves comes in again
        sound = sound.gather(1, places[:, :, None].expand_as(sound))
    if settings.gain:
        sound = sound + settings.gain * torch.randn(pairs, 1, 1, device=sound.device)
    if settings.noise:
        sound = sound + settings.noise * torch.rand(pairs, 1, 1, device=sound.device) * torch.randn_like(sound)
    masks = ((TimeMasking, settings.time_mask * times), (FrequencyMasking, settings.frequency_mask * bins))
    upright = sound.mT[:, None]  # (B, 1, frequency, time), as torchaudio has it
    for mask, width in masks:
        if round(width):
            upright = mask(round(width), iid_masks=True)(upright)
    return upright[:, 0].mT
