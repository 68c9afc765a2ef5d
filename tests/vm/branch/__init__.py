"""Branch: captures inside forks of running guests, generation after generation."""
