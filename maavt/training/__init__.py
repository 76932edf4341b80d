"""What training needs around a model: losses, adapters, devices, several processes."""
