"""One job in every environment: cgroups, namespaces, users, streams."""
