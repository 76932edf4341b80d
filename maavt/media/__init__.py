"""One media file -> frames, waveform, spectrograms, a sample."""
