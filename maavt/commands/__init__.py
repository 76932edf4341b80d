"""What people type beside the stages: a module with main() for each."""
