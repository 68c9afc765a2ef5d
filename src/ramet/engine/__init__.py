"""What an order of steps can get right or wrong: the only room that composes the others. See README.md."""
