"""Recordings of any length: their windows, what a trained model says of them, and what becomes of that."""
