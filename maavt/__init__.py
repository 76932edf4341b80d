"""Audio-visual learning pipelines: from videos to a trained, measured model."""
