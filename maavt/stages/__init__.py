"""The stages of dvc.yaml: a module with a plain main() for each."""
