"""Fork: what is shared, what a fork proves, what it costs, its trace."""
