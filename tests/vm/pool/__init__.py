"""Pool: warm VMMs, claims, the controller, memory budgets."""
