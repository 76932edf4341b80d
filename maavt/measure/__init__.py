"""What the benchmark and the page measure against and draw with."""
